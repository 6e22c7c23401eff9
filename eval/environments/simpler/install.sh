#!/usr/bin/env bash
# bash eval/environments/simpler/install.sh FOLDER: SimplerEnv's simulator in a Python 3.10 of its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../functions.sh" python3.10 "$@"

# the submodule of simpler-env/SimplerEnv at 4ab7178
clone https://github.com/simpler-env/ManiSkill2_real2sim \
  ef7a4d4fdf4b69f2c2154db5b15b9ac8dfe10682 ManiSkill2_real2sim
install "$here/requirements.txt"
"$folder/python/bin/pip" install --quiet --no-deps --no-build-isolation -e "$folder/ManiSkill2_real2sim"
variables SIMPLER_PYTHON="$folder/python/bin/python" SIMPLER_DIR="$folder"

#!/usr/bin/env bash
# bash eval/environments/calvin/install.sh FOLDER: CALVIN's simulator in a Python 3.8 of its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../functions.sh" python3.8 "$@"

clone https://github.com/mees/calvin fa03f01f19c65920e18cf37398a9ce859274af76 calvin
# the submodule of that commit
clone https://github.com/mees/calvin_env 1431a46bd36bde5903fb6345e68b5ccc30def666 calvin_env
install "$here/requirements.txt"
variables \
  CALVIN_PYTHON="$folder/python/bin/python" \
  PYTHONPATH="$folder/calvin_env:$folder/calvin/calvin_models"

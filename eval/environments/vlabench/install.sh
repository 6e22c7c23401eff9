#!/usr/bin/env bash
# bash eval/environments/vlabench/install.sh FOLDER: VLABench in a Python 3.10 of its own, without its
# assets, which its own scripts/download_assets.py takes from a drive.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../functions.sh" python3.10 "$@"

clone https://github.com/OpenMOSS/VLABench 47b04bf5f0622e6bcf7449ca2f7ee274516e64e9 VLABench
# which its skills import
clone https://github.com/motion-planning/rrt-algorithms \
  e51d95ee489a225220d6ae2a764c4111f6ba7d85 rrt-algorithms
install "$here/requirements.txt"
"$folder/python/bin/pip" install --quiet --no-deps --no-build-isolation \
  -e "$folder/VLABench" -e "$folder/rrt-algorithms"
variables \
  VLABENCH_PYTHON="$folder/python/bin/python" \
  VLABENCH_ROOT="$folder/VLABench/VLABench" \
  MUJOCO_GL=egl

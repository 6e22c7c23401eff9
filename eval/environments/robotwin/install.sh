#!/usr/bin/env bash
# bash eval/environments/robotwin/install.sh FOLDER: RoboTwin 2.0's sources and the packages of its
# scene. Its planner (CuRobo, CUDA) and its assets come from its own scripts, see README.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../functions.sh" python3.10 "$@"

clone https://github.com/RoboTwin-Platform/RoboTwin cf47ab5697c81c39f78522ba24102f789b6bce5e RoboTwin
install "$here/requirements.txt"
variables ROBOTWIN_PYTHON="$folder/python/bin/python" ROBOTWIN_ROOT="$folder/RoboTwin"

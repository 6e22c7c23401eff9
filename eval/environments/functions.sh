# Sourced by each simulator's install.sh, with the name of its Python and what it was called with:
#   . functions.sh python3.10 "$@"
# It sets `folder`, where all goes, and makes the functions below.
[ $# -eq 2 ] || { echo "usage: [PYTHON=$1] bash ${BASH_SOURCE[1]} FOLDER" >&2 && exit 2; }
python=${PYTHON:-$1}
folder=$(realpath -m "$2")
mkdir -p "$folder"

# clone URL COMMIT PLACE: that commit alone, as a checkout of git, whose commit receipts name.
clone() {
  local place="$folder/$3"
  git init --quiet "$place"
  git -C "$place" fetch --quiet --depth 1 "$1" "$2"
  git -C "$place" -c advice.detachedHead=false checkout --quiet FETCH_HEAD
}

# install REQUIREMENTS [ARGUMENT ...]: a virtual environment in python/ with these packages.
install() {
  [ -x "$folder/python/bin/pip" ] || "$python" -m venv "$folder/python"
  "$folder/python/bin/pip" install --quiet --disable-pip-version-check -r "$@"
}

# variables NAME=VALUE ...: writes environment.sh, which a run sources.
variables() {
  printf 'export %q\n' "$@" >"$folder/environment.sh"
  echo "installed; before a run: source $folder/environment.sh"
}

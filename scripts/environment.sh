# Sourced by test.sh and demo.sh. use_environment FILE... sets `python` to an interpreter that has what the requirement
# files list: the active virtual or conda environment as it is, or else `.venv`, made and filled when the files change.

use_environment() {
  local active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
  if [ -n "$active" ]; then
    python=$active/bin/python
    list_missing "$@"
    return
  fi
  python=.venv/bin/python
  if ! "$python" -c '' 2>/dev/null; then
    local found
    found=$(find_python) || return
    if ! "$found" -m venv --clear .venv; then
      echo "error: $found cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2
      return 1
    fi
  fi
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip || return
  local file stamp
  for file in "$@"; do
    stamp=.venv/installed-$file
    if ! cmp -s "$file" "$stamp"; then
      echo "Installing $file into .venv"
      "$python" -m pip install --quiet --disable-pip-version-check -r "$file" || return
      cp "$file" "$stamp"
    fi
  done
}

# Prints the first Python of a version that this project runs on.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python 3.10-3.13 found; python3 is $(python3 --version 2>&1 || true)" >&2
  return 1
}

# Fails with the names of required packages that the active environment lacks.
list_missing() {
  "$python" - "$@" <<'PYTHON'
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

missing = []
for file in sys.argv[1:]:
    for name in re.findall(r"^[\w.-]+", Path(file).read_text(), re.MULTILINE):
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
if missing:
    files = " ".join(f"-r {file}" for file in sys.argv[1:])
    sys.exit(f"error: {sys.prefix} lacks {', '.join(missing)}; run: {sys.executable} -m pip install {files}")
PYTHON
}

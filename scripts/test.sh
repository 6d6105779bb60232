#!/usr/bin/env bash
# Lints and tests everything, as CI does. Arguments go to pytest: scripts/test.sh tests/method/test_pruning.py -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
use_environment requirements.txt requirements-test.txt

"$python" -m ruff check
"$python" -m ruff format --check
OMP_NUM_THREADS=1 "$python" -m pytest -n 2 "$@"

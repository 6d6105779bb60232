#!/usr/bin/env bash
# Lints and tests everything, as CI does. Arguments go to pytest: scripts/test.sh tests/method/test_pruning.py -x
# As many processes test as cores are free; threads that wait for each other on busy ones would take many times as long.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
use_environment requirements.txt requirements-test.txt

"$python" -m ruff check
"$python" -m ruff format --check
free=$("$python" -c "from madtp.look.machine import free_cores; print(free_cores())")
processes=$((free < 8 ? free : 8)) # each takes a gigabyte
echo "$free cores are free: $processes processes test, each in one thread"
OMP_NUM_THREADS=1 "$python" -m pytest -n "$processes" "$@"

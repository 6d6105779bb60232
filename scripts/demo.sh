#!/usr/bin/env bash
# Trains a small model on generated pictures, compresses it to half its cost and shows what that did.
#
#   bash scripts/demo.sh [nlvr|caption|vqa|retrieval|clip] [--quick]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
use_environment requirements.txt

exec "$python" -m madtp demo "$@"

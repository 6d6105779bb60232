#!/usr/bin/env bash
TASK=caption P=0.75 MODE=evaluate exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"

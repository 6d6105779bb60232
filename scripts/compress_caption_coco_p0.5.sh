#!/usr/bin/env bash
TASK=caption P=0.5 MODE=compress exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"

#!/usr/bin/env bash
TASK=vqa P=0.75 MODE=evaluate exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"

#!/usr/bin/env bash
TASK=nlvr P=0.8 MODE=evaluate exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"

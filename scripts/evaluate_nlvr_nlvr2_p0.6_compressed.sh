#!/usr/bin/env bash
TASK=nlvr P=0.6 MODE=evaluate exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"

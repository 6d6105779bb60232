#!/usr/bin/env bash
TASK=nlvr P=0.7 MODE=compress exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"

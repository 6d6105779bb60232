#!/usr/bin/env bash
TASK=nlvr P=0.8 MODE=compress exec bash "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"

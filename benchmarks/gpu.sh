#!/usr/bin/env bash
# Measures on a GPU what nothing else can tell, in at most four minutes, the most telling first.
#
#   bash benchmarks/gpu.sh [kernels|tasks|memory|speed]
#
# Without a name: kernels, tasks and speed, whose lines hold the memory as well. It needs torch, timm and transformers and
# goes on without anything else; a section that is over its time is ended, the next one begun. Without a GPU everything
# runs in small, and what needs one is named as skipped.
#
#   PYTHON   the interpreter (python, or python3)
#   OUTPUT   the file that lines are added to (benchmarks/results/gpu.jsonl)
#   SECONDS_IN_ALL  (235)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-$(command -v python || echo python3)}
output=${OUTPUT:-benchmarks/results/gpu.jsonl}
end=$(($(date +%s) + ${SECONDS_IN_ALL:-235}))

for package in torch timm transformers torchvision triton open_clip ruamel.yaml; do
  "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('${package%%.*}') is None)" ||
    echo "missing: $package" >&2
done

# section, and the seconds that it may take at most
sections=("kernels 55" "tasks 60" "speed 235")
case ${1:-} in
  '') ;;
  kernels | tasks | memory | speed) sections=("$1 235") ;;
  *)
    echo "error: $1 is none of kernels, tasks, memory, speed" >&2
    exit 2
    ;;
esac

for row in "${sections[@]}"; do
  read -r section most <<<"$row"
  left=$((end - $(date +%s)))
  if ((left < most)); then most=$left; fi
  if ((most < 5)); then
    echo "$section: no time is left" >&2
    continue
  fi
  # Parts end by themselves, five seconds before a part that does not is ended.
  timeout --kill-after=3 "$most" "$python" -u -m benchmarks.gpu "$section" --seconds "$((most - 5))" --output "$output" ||
    echo "$section: ended with status $?" >&2
done

#!/usr/bin/env bash
# Compresses or evaluates one model of the paper. Every other launcher is this one with TASK and P set.
#
#   TASK=nlvr P=0.5 scripts/run.sh [flags of the task's script ...]
#
#   TASK        nlvr, caption, vqa, retrieval, retrieval_flickr, retrieval_clip, retrieval_flickr_clip
#   P           share of the GFLOPs to remove (0.5)
#   MODE        compress (default) or evaluate
#   NPROC       processes, one per GPU (8); 1 runs plain python
#   PORT        where the processes meet, for a second run on the same machine
#   EPOCH       epochs (the paper's)
#   OUT         output folder (output/..._compression_pP)
#   CHECKPOINT  what to start from, or what to evaluate: the released file in OUT, or else the best that a run left there
#   PYTHON      the interpreter (python)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

task=${TASK:?give TASK, for example: TASK=nlvr P=0.5 scripts/run.sh}
p=${P:-0.5}

# script, config, uncompressed model, name of the output folder, name of the released checkpoint, epochs
case $task in
  nlvr | nlvr_nlvr2)
    row=(compress_nlvr_dtp.py nlvr model_base_nlvr nlvr_nlvr2 model_base_nlvr_nlvr2 15)
    if [ "$p" = 0.8 ]; then row[5]=25; fi
    ;;
  caption | caption_coco)
    row=(compress_caption_dtp.py caption_coco model_base_caption_capfilt_large caption_coco
      model_base_caption_capfilt_large_coco 5)
    ;;
  vqa | vqa_vqa2)
    row=(compress_vqa_dtp.py vqa model_base_vqa_capfilt_large vqa_vqa2 model_base_vqa_capfilt_large_vqa2 3)
    ;;
  retrieval | retrieval_coco)
    row=(compress_retrieval_dtp.py retrieval_coco model_base_retrieval_coco retrieval_coco
      model_base_retrieval_coco 5)
    ;;
  retrieval_flickr)
    row=(compress_retrieval_flickr_dtp.py retrieval_flickr model_base_retrieval_flickr retrieval_flickr
      model_base_retrieval_flickr 10)
    ;;
  retrieval_clip | retrieval_coco_clip)
    row=(compress_retrieval_clip_dtp.py retrieval_coco_clip clip_large_retrieval_coco retrieval_coco_clip
      clip_large_retrieval_coco 5)
    ;;
  retrieval_flickr_clip)
    row=(compress_retrieval_clip_dtp.py retrieval_flickr_clip clip_large_retrieval_flickr retrieval_flickr_clip
      clip_large_retrieval_flickr 10)
    ;;
  *)
    echo "error: TASK=$task is none of nlvr, caption, vqa, retrieval, retrieval_flickr, retrieval_clip," \
      "retrieval_flickr_clip" >&2
    exit 2
    ;;
esac
script=${row[0]} config=./configs/${row[1]}.yaml model=pretrained/${row[2]}.pth epochs=${row[5]}
out=${OUT:-output/${row[3]}_compression_p$p}
released=$out/${row[4]}_p${p}_compressed.pth

case ${MODE:-compress} in
  compress)
    flags=(--p "$p" --epoch "${EPOCH:-$epochs}" --pretrained "${CHECKPOINT:-$model}")
    ;;
  evaluate)
    checkpoint=$released
    if [ ! -e "$released" ] && [ -e "$out/checkpoint_best.pth" ]; then checkpoint=$out/checkpoint_best.pth; fi
    flags=(--evaluate --pretrained "${CHECKPOINT:-$checkpoint}")
    ;;
  *)
    echo "error: MODE=$MODE is neither compress nor evaluate" >&2
    exit 2
    ;;
esac

command=("${PYTHON:-$(command -v python || echo python3)}")
if [ "${NPROC:-8}" != 1 ]; then
  # Without the --, recent launchers take --p for an abbreviation of their own --print-completion, and stop.
  command+=(-m torch.distributed.run "--nproc_per_node=${NPROC:-8}" ${PORT:+"--master_port=$PORT"} --)
fi

set -x
exec "${command[@]}" "$script" "${flags[@]}" --config "$config" --output_dir "$out" "$@"

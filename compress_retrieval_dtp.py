"""Compresses BLIP for image-text retrieval on COCO, or evaluates it: which caption belongs to which image?

    python compress_retrieval_dtp.py --p 0.5 --epoch 5 --pretrained pretrained/model_base_retrieval_coco.pth \\
        --config ./configs/retrieval_coco.yaml --output_dir output/retrieval_coco_compression_p0.5
    python compress_retrieval_dtp.py --evaluate \\
        --pretrained output/retrieval_coco_compression_p0.5/checkpoint_best.pth \\
        --config ./configs/retrieval_coco.yaml --output_dir output/retrieval_coco_compression_p0.5

On several GPUs: `python -m torch.distributed.run --nproc_per_node=8 --` in place of `python`.

The validation split steers the temperature and chooses the checkpoint; the test split is only reported. Everything else
is in madtp/scoring/judged_retrieval.py.
"""

import sys

from madtp.run.engine import main
from madtp.scoring.judged_retrieval import JudgedRetrieval


class RetrievalCOCO(JudgedRetrieval):
    """Retrieval on Karpathy's splits of COCO."""

    name = "retrieval"
    default_config = "configs/retrieval_coco.yaml"


if __name__ == "__main__":
    sys.exit(main(RetrievalCOCO()))

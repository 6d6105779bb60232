"""Compresses BLIP for image-text retrieval on Flickr30k, or evaluates it: which caption belongs to which image?

    python compress_retrieval_flickr_dtp.py --p 0.5 --epoch 10 \\
        --pretrained pretrained/model_base_retrieval_flickr.pth \\
        --config ./configs/retrieval_flickr.yaml --output_dir output/retrieval_flickr_compression_p0.5
    python compress_retrieval_flickr_dtp.py --evaluate \\
        --pretrained output/retrieval_flickr_compression_p0.5/checkpoint_best.pth \\
        --config ./configs/retrieval_flickr.yaml --output_dir output/retrieval_flickr_compression_p0.5

On several GPUs: `python -m torch.distributed.run --nproc_per_node=8 --` in place of `python`.

The validation split steers the temperature and chooses the checkpoint; the test split is only reported. Everything else
is in madtp/scoring/judged_retrieval.py.
"""

import sys

from madtp.run.engine import main
from madtp.scoring.judged_retrieval import JudgedRetrieval


class RetrievalFlickr(JudgedRetrieval):
    """Retrieval on Flickr30k."""

    name = "retrieval_flickr"
    default_config = "configs/retrieval_flickr.yaml"


if __name__ == "__main__":
    sys.exit(main(RetrievalFlickr()))

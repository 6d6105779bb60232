"""Compresses BLIP for NLVR2, or evaluates it: is a statement true of two images?

    python compress_nlvr_dtp.py --p 0.5 --epoch 15 --pretrained pretrained/model_base_nlvr.pth \\
        --config ./configs/nlvr.yaml --output_dir output/nlvr_nlvr2_compression_p0.5
    python compress_nlvr_dtp.py --evaluate --pretrained output/nlvr_nlvr2_compression_p0.5/checkpoint_best.pth \\
        --config ./configs/nlvr.yaml --output_dir output/nlvr_nlvr2_compression_p0.5

On several GPUs: `python -m torch.distributed.run --nproc_per_node=8 --` in place of `python`.

The dev split ("val" in the logs) steers the temperature and chooses the checkpoint; the test split is only reported.
"""

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp.cost import flops
from madtp.cost.trace import Trace
from madtp.run.engine import Task, main
from madtp.scoring import metrics


class NLVR(Task):
    """Two images and a statement in, true or false out."""

    name = "nlvr"
    default_config = "configs/nlvr.yaml"
    recipe = "nlvr"

    def build_model(self, config: dict, evaluate: bool) -> nn.Module:
        from models.blip_nlvr import blip_nlvr  # only now, so that --help and a wrong flag are answered at once

        return blip_nlvr(
            config["pretrained"], config["image_size"], config["vit"], config["med_config"], evaluate, config
        )

    def losses(self, model: nn.Module, batch: dict, temperature: float, progress: float) -> dict[str, Tensor]:
        return model(stacked_images(batch), batch["text"], batch["target"], temperature)

    def predict(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> list[tuple[int, int]]:
        logits = model(stacked_images(batch), batch["text"], temperature=temperature, train=False, trace=trace)
        return list(zip(logits.argmax(dim=1).tolist(), batch["target"].tolist(), strict=True))

    def outputs(self, model: nn.Module, batch: dict, temperature: float) -> Tensor:
        return model(stacked_images(batch), batch["text"], temperature=temperature, train=False).softmax(dim=-1)

    def asked(self, batch: dict, row: int) -> str:
        return f"{batch['text'][row]} ({bool(batch['target'][row])})".lower()

    def answered(self, result: tuple[int, int]) -> str:
        return str(bool(result[0])).lower()

    def metrics(self, predictions: list, dataset: Dataset) -> dict[str, float]:
        predicted, targets = zip(*(result for _, result in predictions), strict=True)
        return metrics.accuracy(predicted, targets)

    def score(self, metrics: dict) -> float:
        return metrics["accuracy"]

    def cost(self, model: nn.Module, trace: Trace) -> flops.Cost:
        from models.nlvr_encoder import FIRST_MERGED_LAYER

        image, text = model.visual_encoder.shape, model.text_encoder.shape
        return flops.nlvr(image, text, trace.layers, model.num_learnable, FIRST_MERGED_LAYER) / flops.GIGA


def stacked_images(batch: dict) -> Tensor:
    """The left images of the batch, then the right ones: [2B, 3, H, W]."""
    return torch.cat([batch["image0"], batch["image1"]])


if __name__ == "__main__":
    sys.exit(main(NLVR()))

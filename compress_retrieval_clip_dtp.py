"""Compresses CLIP for image-text retrieval, or evaluates it: which caption belongs to which image?

    python compress_retrieval_clip_dtp.py --p 0.5 --epoch 5 --pretrained pretrained/clip_large_retrieval_coco.pth \\
        --config ./configs/retrieval_coco_clip.yaml --output_dir output/retrieval_coco_clip_compression_p0.5
    python compress_retrieval_clip_dtp.py --evaluate \\
        --pretrained output/retrieval_coco_clip_compression_p0.5/checkpoint_best.pth \\
        --config ./configs/retrieval_coco_clip.yaml --output_dir output/retrieval_coco_clip_compression_p0.5

On several GPUs: `python -m torch.distributed.run --nproc_per_node=8 --` in place of `python`. Flickr30k is another
config: `configs/retrieval_flickr_clip.yaml`. --pretrained also takes OpenAI's archives, and their names, like ViT-B/16,
which --download fetches. The validation split steers the temperature and chooses the checkpoint; the test split is only
reported.

Shapes: I images, T texts, F width of the features.
"""

import sys
from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from madtp.cost import flops
from madtp.cost.measure import CostMeter, device_of
from madtp.cost.trace import Trace
from madtp.run.engine import main
from madtp.run.output import progress_bar
from madtp.scoring import metrics
from madtp.scoring.retrieval import Retrieval, gather_features, matches_of, own_batches, summary
from madtp.shared.weights.hub import is_name


class RetrievalClip(Retrieval):
    """Finds them by the similarity of their features alone."""

    name = "retrieval_clip"
    default_config = "configs/retrieval_coco_clip.yaml"
    recipe = "retrieval_clip"
    fresh_image_size = 224
    floor = "of a text CLIP only drops what a batch's longest text does not need, so nearly all has to come from images"

    def download(self, name: str) -> None:
        from clip.download import MODELS, download

        if name in MODELS or not is_name(name):
            download(name)
        else:
            super().download(name)

    def build_model(self, config: dict, evaluate: bool) -> nn.Module:
        import clip  # only now, so that --help and a wrong flag are answered at once

        return clip.load(config["pretrained"], "cpu", evaluate, config)[0]

    def read(self, path: str) -> dict:
        from clip.clip import locate, read

        return read(locate(path))

    def scores(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> Tensor:
        """Similarity of every image to every caption of the batch, [I, T]."""
        image = F.normalize(model.encode_image(batch["image"], temperature, trace), dim=-1)
        text = F.normalize(model.encode_text(model.encode_captions(batch["caption"]), temperature, trace), dim=-1)
        return image @ text.T

    def outputs(self, model: nn.Module, batch: dict, temperature: float) -> Tensor:
        return F.normalize(model.encode_image(batch["image"], temperature), dim=-1)

    def evaluate(self, model: nn.Module, loader: DataLoader, temperature: float) -> dict:
        dataset, size = loader.dataset.dataset, self.config["batch_size_test"]
        image_meter, text_meter = self.meters(model)
        images = ((int(batch["index"][0]), batch["image"]) for batch in progress_bar(loader, "images"))
        image = encode(images, lambda inputs, trace: model.encode_image(inputs, temperature, trace), image_meter, model)
        ids = model.encode_captions(dataset.texts)
        texts = ((start, ids[start : start + size]) for start in own_batches(len(ids), size))
        text = encode(texts, lambda inputs, trace: model.encode_text(inputs, temperature, trace), text_meter, model)
        return {**self.metrics((image, text), dataset), **summary(text_meter, image_meter)}

    def metrics(self, predictions: tuple[Tensor, Tensor], dataset: Dataset) -> dict[str, float]:
        """Recall of the features [I, F] of all images and [T, F] of all texts."""
        return metrics.similarity_recall(*predictions, matches_of(dataset))

    def cost(self, model: nn.Module, trace: Trace) -> flops.Cost:
        image, text = model.visual.shape, model.text_shape
        return flops.clip(image, text, trace.layers, model.num_learnable, model.sizes.embed_dim) / flops.GIGA

    def meters(self, model: nn.Module) -> tuple[CostMeter, CostMeter]:
        """For the forward passes of images and of texts; together they are what `cost` counts."""
        image, text = model.visual.shape, model.text_shape
        sizes = model.num_learnable, model.sizes.embed_dim
        return (
            CostMeter(lambda trace: flops.clip_image_feature(image, trace.layers, *sizes) / flops.GIGA),
            CostMeter(lambda trace: flops.clip_text_feature(text, trace.layers, *sizes) / flops.GIGA),
        )


def encode(
    batches: Iterable[tuple[int, Tensor]],
    encoder: Callable[[Tensor, Trace], Tensor],
    meter: CostMeter,
    model: nn.Module,
) -> Tensor:
    """Normalised features of all processes' inputs, in order; a batch comes with the number of its first input."""
    device, parts = device_of(model), []
    for start, inputs in batches:
        inputs = inputs.to(device, non_blocking=True)
        with meter.forward(len(inputs)) as trace:
            features = encoder(inputs, trace)
        parts.append((start, F.normalize(features.float(), dim=-1).cpu()))
    return gather_features(parts).to(device)


if __name__ == "__main__":
    sys.exit(main(RetrievalClip()))

"""BLIP's image-text retrieval: compare the features of all images and texts, then judge the likeliest pairs by ITM.

Every process encodes its share of the images and of the texts. Features are exchanged; then each judges the pairs of
its own images, whose tokens never leave it. Pairs are grouped by image in both directions, and a pair that is wanted in
both is judged once.

Shapes: I images, T texts, L tokens of a text, E width of the features, B images of a batch, S image tokens, n images in
one forward pass with G texts each.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import chain
from operator import or_
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from madtp import flops, metrics
from madtp.layout import Sequences
from madtp.measure import SPREAD, CostMeter, device_of, progress_bar
from madtp.momentum import ramped_alpha
from madtp.packed import Packed
from madtp.task import Task, gather_predictions
from madtp.trace import LayerTrace, Trace
from utils import all_gather_objects, rank, world_size

PAIRS = 256  # judged in one forward pass


class ImageBatch(NamedTuple):
    """Images as they left the pruned tower.

    Attributes:
        index: numbers of the images.
        states: their tokens on the CPU, [B, S, D] or packed; S is the batch's own.
        layers: what the tower did, without the indices of what it kept.
    """

    index: list[int]
    states: Sequences
    layers: list[LayerTrace]


class Judged(NamedTuple):
    """What was found out about the pairs of one image.

    Attributes:
        texts: numbers of the texts.
        scores: ITM logit plus similarity of the features.
        for_image: whether the text is among the image's candidates.
        for_text: whether the image is among the text's candidates.
    """

    texts: Tensor
    scores: Tensor
    for_image: Tensor
    for_text: Tensor


class Retrieval(Task):
    """Finds the texts of an image and the image of a text; COCO and Flickr30k differ in their configuration."""

    recipe = "retrieval"
    loss_weights = {"loss_ita": 1.0, "loss_itm": 1.0, "loss_sim": 0.1, "loss_sim_m": 0.1}

    def build_model(self, config: dict, evaluate: bool) -> nn.Module:
        from models.blip_retrieval import blip_retrieval  # only now, so that a wrong flag is answered at once

        sizes = {name: config[name] for name in ("image_size", "vit", "med_config", "queue_size")}
        all_rank = config["negative_all_rank"]
        return blip_retrieval(
            config["pretrained"], **sizes, negative_all_rank=all_rank, evaluate=evaluate, config=config
        )

    def losses(self, model: nn.Module, batch: dict, temperature: float, progress: float) -> dict[str, Tensor]:
        alpha = ramped_alpha(self.config["alpha"], progress)
        return model(batch["image"], batch["caption"], alpha, batch["idx"], temperature)

    def predict(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> list[str]:
        """For each image the best of the batch's captions, found as in the evaluation."""
        captions = batch["caption"]
        text = model.encode_captions(captions)
        states, features = model.encode_image(batch["image"], temperature, trace)
        similarity = features @ model.encode_text(*text, temperature, trace).T
        likeliest = similarity.topk(min(len(captions), max(1, PAIRS // len(captions))), dim=1)
        pairs = (values[likeliest.indices.flatten()] for values in text)
        logits = model.match(*pairs, states, temperature=temperature, trace=trace)
        scores = likeliest.values + logits[:, 1].view_as(likeliest.values)
        best = likeliest.indices.gather(1, scores.argmax(dim=1, keepdim=True))
        return [captions[number] for number in best.flatten().tolist()]

    def asked(self, batch: dict, row: int) -> str:
        return batch["caption"][row]

    def answered(self, result: str) -> str:
        return result

    def evaluate(self, model: nn.Module, loader: DataLoader, temperature: float) -> dict:
        dataset = loader.dataset.dataset
        image_meter, text_meter, pair_meter = self.meters(model)
        batches, image_features = encode_images(model, loader, temperature, image_meter)
        text = model.encode_captions(dataset.texts)
        text_features = encode_texts(model, text, self.config["batch_size_test"], temperature, text_meter)
        with torch.autocast("cpu", enabled=False):
            similarity = image_features @ text_features.T  # [I, T]
        k = self.config["k_test"]
        for_image, for_text = candidates(similarity, k), candidates(similarity.T, k).T
        wanted = for_image | for_text
        predictions = []
        for image, logits in judge(model, batches, text, wanted, temperature, pair_meter).items():
            texts = wanted[image].nonzero().squeeze(1)
            scores = similarity[image, texts] + logits
            predictions.append((image, Judged(texts, scores, for_image[image, texts], for_text[image, texts])))
        everyone = gather_predictions(predictions, len(dataset))
        return {**self.metrics(everyone, dataset), **summary(pair_meter, text_meter, image_meter)}

    def metrics(self, predictions: list[tuple[int, Judged]], dataset: Dataset) -> dict[str, float]:
        scores = predictions[0][1].scores
        image_to_text = scores.new_full((len(dataset), len(dataset.texts)), -torch.inf)
        text_to_image = image_to_text.clone()
        for image, (texts, scores, for_image, for_text) in predictions:
            image_to_text[image, texts[for_image]] = scores[for_image]
            text_to_image[image, texts[for_text]] = scores[for_text]
        return metrics.retrieval_recall(image_to_text, text_to_image.T, dataset.text_to_image)

    def score(self, metrics: dict) -> float:
        return metrics["r_mean"]

    def cost(self, model: nn.Module, trace: Trace) -> float:
        width = model.vision_proj.out_features
        image, text = model.visual_encoder.shape, model.text_encoder.shape
        return flops.retrieval(image, text, trace.layers, model.num_learnable, width) / flops.GIGA

    def meters(self, model: nn.Module) -> tuple[CostMeter, CostMeter, CostMeter]:
        """For the forward passes of images, of texts and of pairs; together they are what `cost` counts."""
        image, text = model.visual_encoder.shape, model.text_encoder.shape
        learnable, width = model.num_learnable, model.vision_proj.out_features
        return (
            CostMeter(lambda trace: flops.image_feature(image, trace.layers, learnable, width) / flops.GIGA),
            CostMeter(lambda trace: flops.text_feature(text, trace.layers, learnable, width) / flops.GIGA),
            CostMeter(lambda trace: flops.match(text, trace.layers, learnable) / flops.GIGA),
        )


def encode_images(
    model: nn.Module, loader: DataLoader, temperature: float, meter: CostMeter
) -> tuple[list[ImageBatch], Tensor]:
    """This process's images, batch by batch, and the features [I, E] of all."""
    device, batches, features = device_of(model), [], []
    for batch in progress_bar(loader, "images"):
        index = batch["index"].tolist()
        with meter.forward(len(index)) as trace:
            states, feature = model.encode_image(batch["image"].to(device, non_blocking=True), temperature, trace)
        layers = [layer._replace(kept=None) for layer in trace.layers["image"]]
        batches.append(ImageBatch(index, states.to("cpu"), layers))
        features.append((index[0], feature.cpu()))
    return batches, gather_features(features)


def encode_texts(
    model: nn.Module, text: tuple[Tensor, Tensor], batch_size: int, temperature: float, meter: CostMeter
) -> Tensor:
    """Features [T, E] of all texts; the processes take batches in turn."""
    features = []
    for start in progress_bar(range(rank() * batch_size, len(text[0]), world_size() * batch_size), "texts"):
        input_ids, mask = (values[start : start + batch_size] for values in text)
        with meter.forward(len(mask)) as trace:
            feature = model.encode_text(input_ids, mask, temperature, trace)
        features.append((start, feature.cpu()))
    return gather_features(features)


def gather_features(parts: list[tuple[int, Tensor]]) -> Tensor:
    """Features of all processes' batches, in order; each batch comes with the number of its first row."""
    everyone = sorted(sum(all_gather_objects(parts), []), key=lambda part: part[0])
    return torch.cat([features for _, features in everyone])


def candidates(similarity: Tensor, k: int) -> Tensor:
    """Which columns are among the k most similar of their row: boolean, like `similarity`."""
    top = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, top, True)


class Piece(NamedTuple):
    """Some of an image's texts: the image's row in its batch, and which of its texts, from `start` to before `stop`."""

    row: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many texts."""
        return self.stop - self.start


def pack(counts: Sequence[int]) -> list[list[Piece]]:
    """Shares the pairs of a batch of images out to forward passes of at most `PAIRS` pairs.

    Pieces of one forward pass are of similar length, the longest first. What is missing to a rectangle is filled with
    repetitions, which change nothing: the number of tokens kept is a maximum over the pairs.

    Args:
        counts: [B], the number of texts of each image.
    """
    pieces = [
        Piece(row, start, min(start + PAIRS, count))
        for row, count in enumerate(counts)
        for start in range(0, count, PAIRS)
    ]
    pieces.sort(key=lambda piece: -piece.size)
    packed = []
    while pieces:
        together = PAIRS // pieces[0].size
        packed.append(pieces[:together])
        pieces = pieces[together:]
    return packed


def pack_ragged(counts: Sequence[int]) -> list[list[Piece]]:
    """As `pack`, where no pair depends on its company: image after image, every forward pass but the last is full."""
    packed, free = [], 0
    for row, count in enumerate(counts):
        start = 0
        while start < count:
            if not free:
                packed.append([])
                free = PAIRS
            stop = min(count, start + free)
            packed[-1].append(Piece(row, start, stop))
            start, free = stop, free - (stop - start)
    return packed


def join(batches: Sequence[ImageBatch]) -> ImageBatch:
    """Packed images of several batches as one batch, whose pairs may go together as they like."""
    index = list(chain.from_iterable(batch.index for batch in batches))
    layers = [LayerTrace.join(rows) for rows in zip(*(batch.layers for batch in batches), strict=True)]
    return ImageBatch(index, Packed.join(batch.states for batch in batches), layers)


def judge(
    model: nn.Module,
    batches: Sequence[ImageBatch],
    text: tuple[Tensor, Tensor],
    wanted: Tensor,
    temperature: float,
    meter: CostMeter,
) -> dict[int, Tensor]:
    """ITM logits "matches" of the wanted pairs of this process's images, keys and values once per image and forward.

    Args:
        model: whose `match` judges.
        batches: of images, with their tokens.
        text: token ids and mask of all texts, [T, L].
        wanted: [I, T], boolean.
        temperature: pruning temperature of the text.
        meter: of the pairs' cost.

    Returns:
        For each image the logits of its wanted texts, in the order of the texts.
    """
    device = device_of(model)
    ragged = bool(batches) and isinstance(batches[0].states.layout, Packed)
    texts, logits, work = {}, {}, []
    for batch in [join(batches)] if ragged else batches:
        own = {image: wanted[image].nonzero().squeeze(1) for image in batch.index}
        texts |= own
        logits |= {image: batch.states.tokens.new_empty(len(numbers)) for image, numbers in own.items()}
        sizes = [len(numbers) for numbers in own.values()]
        work += [(batch, pieces) for pieces in (pack_ragged if ragged else pack)(sizes)]
    for batch, pieces in progress_bar(work, "pairs"):
        chosen, states, layers = pairs_of(batch, pieces, texts)
        chosen = chosen.to(device)
        with meter.forward(len(chosen)) as trace:
            trace.layers["image"] = layers
            given = (values[chosen] for values in text)
            judged = model.match(*given, states.to(device), temperature=temperature, trace=trace)[:, 1].cpu()
        parts = judged.split([piece.size for piece in pieces]) if ragged else judged.view(len(pieces), -1)
        for (row, start, stop), found in zip(pieces, parts, strict=True):
            logits[batch.index[row]][start:stop] = found[: stop - start]
    return logits


def pairs_of(
    batch: ImageBatch, pieces: Sequence[Piece], texts: dict[int, Tensor]
) -> tuple[Tensor, Sequences, list[LayerTrace]]:
    """What a forward pass judges.

    Returns:
        The numbers of the texts, image after image; the tokens of the images; what their tower did, pair by pair where
        it differs.
    """
    rows, sizes = [piece.row for piece in pieces], [piece.size for piece in pieces]
    states = batch.states.take(rows)
    if not isinstance(states.layout, Packed):
        places = torch.arange(sizes[0])  # [G]
        chosen = [texts[batch.index[row]][(start + places).clamp(max=stop - 1)] for row, start, stop in pieces]
        return torch.cat(chosen), states, batch.layers
    states.layout.readers = sizes
    chosen = torch.cat([texts[batch.index[row]][start:stop] for row, start, stop in pieces])
    pairs = np.repeat(rows, sizes)
    return chosen, states, [layer.take(pairs) for layer in batch.layers]


def summary(*meters: CostMeter) -> dict:
    """Cost, tokens and speed of a sample that needs one forward pass of every meter; later ones overrule tokens.

    Its spread is that of a sample which takes the same percentile in every part.
    """
    parts = [meter.summary() for meter in meters]
    gflops, dense = (sum(part[name] for part in parts) for name in ("gflops", "gflops_dense"))
    spread = {
        name: sum(part[name] * part["gflops_dense"] for part in parts) / dense
        for name in (f"percent_p{rank}" for rank in SPREAD)
    }
    tokens = {
        name: reduce(or_, (part[name] for part in parts))
        for name in ("tokens", *(f"tokens_p{rank}" for rank in SPREAD))
    }
    seconds = sum(1 / part["samples_per_second"] for part in parts)
    return {
        "percent": 100 * gflops / dense,
        "gflops": gflops,
        "gflops_dense": dense,
        **spread,
        **tokens,
        "samples_per_second": 1 / seconds,
    }

"""BLIP's image-text retrieval: compare the features of all images and texts, then judge the likeliest pairs by ITM.

Every process encodes its share of the images and of the texts. Features are exchanged; then each judges the pairs of
its own images, whose tokens never leave it. Pairs are grouped by image in both directions, and a pair that is wanted in
both is judged once.

Shapes: I images, T texts, L tokens of a text, E width of the features.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from madtp.cost import flops
from madtp.cost.measure import CostMeter, device_of
from madtp.cost.trace import Trace
from madtp.run.output import progress_bar
from madtp.run.task import gather_predictions
from madtp.scoring import metrics, reranking
from madtp.scoring.retrieval import Retrieval, gather_features, matches_of, own_batches, summary


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


class JudgedRetrieval(Retrieval):
    """Judges the pairs whose features are most alike; COCO and Flickr30k differ in their configuration."""

    recipe = "retrieval"
    loss_weights = {"loss_ita": 1.0, "loss_itm": 1.0, "loss_sim": 0.1, "loss_sim_m": 0.1}

    def build_model(self, config: dict, evaluate: bool) -> nn.Module:
        from models.blip_retrieval import blip_retrieval  # only now, so that a wrong flag is answered at once

        sizes = {name: config[name] for name in ("image_size", "vit", "med_config", "queue_size")}
        all_rank = config["negative_all_rank"]
        return blip_retrieval(
            config["pretrained"], **sizes, negative_all_rank=all_rank, evaluate=evaluate, config=config
        )

    def remarks(self, split: str, dataset: Dataset) -> Iterator[str]:
        yield from super().remarks(split, dataset)
        if split != "train" and (k := self.config["k_test"]) < max(metrics.RANKS):
            yield f"k_test {k}: only that many candidates are judged, and R@{max(metrics.RANKS)} is no more than R@{k}"

    def scores(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> Tensor:
        """Every image with every caption of the batch, judged as in the evaluation: [I, T], -inf where unlikely."""
        captions = batch["caption"]
        text = model.encode_captions(captions)
        states, features = model.encode_image(batch["image"], temperature, trace)
        similarity = features @ model.encode_text(*text, temperature, trace).T
        likeliest = similarity.topk(min(len(captions), max(1, reranking.PAIRS // len(captions))), dim=1)
        pairs = (values[likeliest.indices.flatten()] for values in text)
        logits = model.match(*pairs, states, temperature=temperature, trace=trace)
        scores = likeliest.values + logits[:, 1].view_as(likeliest.values)
        return torch.full_like(similarity, -torch.inf).scatter(1, likeliest.indices, scores.to(similarity.dtype))

    def outputs(self, model: nn.Module, batch: dict, temperature: float) -> Tensor:
        """Features of the images; texts stay as they are."""
        return model.encode_image(batch["image"], temperature)[1]

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
        for image, logits in reranking.judge(model, batches, text, wanted, temperature, pair_meter).items():
            texts = wanted[image].nonzero().squeeze(1)
            scores = similarity[image, texts] + logits
            predictions.append((image, Judged(texts, scores, for_image[image, texts], for_text[image, texts])))
        everyone = gather_predictions(predictions, len(dataset))
        recalls = {**self.metrics(everyone, dataset), **contrastive(image_features, text_features, dataset)}
        return {**recalls, **summary(pair_meter, text_meter, image_meter)}

    def metrics(self, predictions: list[tuple[int, Judged]], dataset: Dataset) -> dict[str, float]:
        scores = predictions[0][1].scores
        image_to_text = scores.new_full((len(dataset), len(dataset.texts)), -torch.inf)
        text_to_image = image_to_text.clone()
        for image, (texts, scores, for_image, for_text) in predictions:
            image_to_text[image, texts[for_image]] = scores[for_image]
            text_to_image[image, texts[for_text]] = scores[for_text]
        return metrics.retrieval_recall(image_to_text, text_to_image.T, matches_of(dataset))

    def cost(self, model: nn.Module, trace: Trace) -> flops.Cost:
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
) -> tuple[list[reranking.ImageBatch], Tensor]:
    """This process's images, batch by batch, and the features [I, E] of all."""
    device, batches, features = device_of(model), [], []
    for batch in progress_bar(loader, "images"):
        index = batch["index"].tolist()
        with meter.forward(len(index)) as trace:
            states, feature = model.encode_image(batch["image"].to(device, non_blocking=True), temperature, trace)
        layers = [layer._replace(kept=None) for layer in trace.layers["image"]]
        batches.append(reranking.ImageBatch(index, states.to("cpu"), layers))
        features.append((index[0], feature.cpu()))
    return batches, gather_features(features)


def encode_texts(
    model: nn.Module, text: tuple[Tensor, Tensor], batch_size: int, temperature: float, meter: CostMeter
) -> Tensor:
    """Features [T, E] of all texts; the processes take batches in turn."""
    features = []
    for start in progress_bar(own_batches(len(text[0]), batch_size), "texts"):
        input_ids, mask = (values[start : start + batch_size] for values in text)
        with meter.forward(len(mask)) as trace:
            feature = model.encode_text(input_ids, mask, temperature, trace)
        features.append((start, feature.cpu()))
    return gather_features(features)


def contrastive(image: Tensor, text: Tensor, dataset: Dataset) -> dict[str, float]:
    """Recall by the features alone, before ITM has judged anything: `ita_txt_r1`, ..., `ita_r_mean`.

    It tells the two parts of the model apart, and is what compares with CLIP's.
    """
    recalls = metrics.similarity_recall(image.float(), text.float(), matches_of(dataset))
    return {f"ita_{name}": share for name, share in recalls.items()}


def candidates(similarity: Tensor, k: int) -> Tensor:
    """Which columns are among the k most similar of their row: boolean, like `similarity`."""
    top = similarity.topk(min(k, similarity.shape[1]), dim=1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, top, True)

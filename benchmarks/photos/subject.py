"""A dense model, the photos that it is scored on, and what an answer costs.

Every task reads an image tower's tokens by its text side; only the tower prunes. So a subject says how tokens are read,
what the readings score, and what of a sample's cost is not the tower's.

Shapes: B photos, L tokens of a photo, D width, E width of a feature, V words.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.comparison.costs import charged, overhead
from benchmarks.comparison.merging import Merger
from benchmarks.photos.dense import K_TEST, build, text_features
from benchmarks.photos.frozen import BATCH, batches, blank_tokens
from benchmarks.photos.machine import Machine
from benchmarks.photos.reranking import likelihood, reranked
from benchmarks.photos.scoring import (
    accuracy_of_photos,
    apart_of_photos,
    cider_of_photos,
    recall_of_photos,
    similarities,
)
from benchmarks.photos.world import MODEL, RERANKING, STATEMENTS, Photo, Places, answer_list, texts_of
from madtp.cost import flops
from madtp.cost.flops import Cost
from madtp.cost.trace import Trace, dense_layers
from madtp.method.layout import Sequences

# Tokens that costs are counted with: of a caption, of a question, and of an answer.
COUNTED = {"retrieval": 35, "caption": 15, "vqa": 16, STATEMENTS: 15, RERANKING: 35}
COUNTED_ANSWER = 5


class Encoded(nn.Module):
    """Stands in for an image tower whose work is done: an "image" is the number of a photo of the batch.

    Args:
        states: tokens of the batch.
        aligned: [B, K, C], their aligned feature, where one is wanted.
    """

    def __init__(self, states: Sequences, aligned: Tensor | None = None):
        super().__init__()
        self.states, self.aligned = states, aligned

    def encode(self, image: Tensor, *ignored: object) -> tuple[Sequences, Tensor | None]:
        """The tokens of some photos, and their aligned feature."""
        return self.states.take(image), None if self.aligned is None else self.aligned[image]


class Subject(ABC):
    """A dense model and the photos that it is scored on.

    Args:
        places: where both are.
        photos: of a split.
        machine: what the model runs on.
        blind: the twin that never saw a photo, nor sees one now.

    Attributes:
        guided: the towers that pay for their alignment by the rule on trial.
        merger: the rule on trial, if it is one whose own work is to be counted.
    """

    task: str

    def __init__(self, places: Places, photos: Sequence[Photo], machine: Machine, blind: bool = False):
        self.places, self.photos, self.machine, self.blind = places, list(photos), machine, blind
        own = MODEL[self.task]
        model = build(places, own, places.dense(own, blind), evaluate=True)
        self.model = model.to(machine.device).eval()
        self.tower = self.model.visual_encoder
        self.guided: tuple[str, ...] = ("image",)
        self.merger: Merger | None = None

    def images(self, photos: Sequence[Photo], batch: int = BATCH) -> Iterator[Tensor]:
        """Photos as the tower takes them, [B, 3, H, W]."""
        files = [self.places.photos(self.task) / photo.name for photo in photos]
        for images in batches(files, self.tower.shape.image_size, batch):
            yield (torch.zeros_like(images) if self.blind else images).to(self.machine.device)

    @torch.no_grad()
    def encode(self, image: Tensor, amount: float, trace: Trace | None = None) -> Sequences:
        """Tokens of photos by the rule that is on trial."""
        with self.machine.mixed():
            return self.model.encode(image, amount, trace=trace)[0]

    @torch.no_grad()
    def read(self, states: Sequences, photos: Sequence[Photo]) -> list:
        """What the text side makes of the tokens of some photos, one reading for each."""
        with self.encoded_as(states), self.machine.mixed():
            return self.readings(torch.arange(len(photos)), photos)

    @contextmanager
    def encoded_as(self, states: Sequences, aligned: Tensor | None = None) -> Iterator[None]:
        """The model takes numbers of photos, whose tokens are known, for images."""
        self.model.visual_encoder = Encoded(states, aligned)
        try:
            yield
        finally:
            self.model.visual_encoder = self.tower

    @abstractmethod
    def readings(self, numbers: Tensor, photos: Sequence[Photo]) -> list:
        """One reading of each photo, given their numbers in a batch whose tokens are known."""

    @abstractmethod
    def scores(self, readings: list) -> dict[str, np.ndarray | float]:
        """Scores of the first photos, as many as there are readings; those that are means of photos one for each."""

    @abstractmethod
    def outputs(self, states: Sequences, photos: Sequence[Photo]) -> Tensor:
        """What is held against the dense model's, a row for every photo: features, or logarithms of probabilities."""

    @abstractmethod
    def sample(self, trace: Trace) -> Cost:
        """Multiply-accumulates of a sample whose image tower left this trace."""

    def cost(self, trace: Trace) -> Cost:
        """GFLOPs of a sample, with what the rule on trial costs itself."""
        own = overhead(trace, self.merger, self.tower) if self.merger else 0.0
        return (self.sample(charged(trace, self.guided)) + own) / flops.GIGA

    def tower_cost(self, trace: Trace) -> Cost:
        """GFLOPs of the image tower alone, likewise."""
        own = overhead(trace, self.merger, self.tower) if self.merger else 0.0
        rows = charged(trace, self.guided).layers["image"]
        return (flops.vision(self.tower.shape, rows, self.model.num_learnable) + own) / flops.GIGA

    def moved(self, outputs: Tensor, dense: Tensor) -> float:
        """How far outputs are from the dense model's: 1 - cos of features, or the divergence of probabilities."""
        return float(1 - F.cosine_similarity(outputs, dense, dim=-1).mean())


class Retrieval(Subject):
    """Photos and captions find each other by their features; texts are encoded once and stay whole."""

    task = "retrieval"

    def __init__(self, *inputs):
        super().__init__(*inputs)
        with torch.no_grad(), self.machine.mixed():
            self.texts = text_features(self.model, self.photos)
        self.owners = texts_of(self.photos)[1]

    def readings(self, numbers, photos):
        return list(self.model.encode_image(numbers)[1])

    def scores(self, readings):
        owners = [owner for owner in self.owners if owner < len(readings)]
        return recall_of_photos(torch.stack(readings), self.texts[: len(owners)], owners)

    def outputs(self, states, photos):
        with torch.no_grad(), self.encoded_as(states), self.machine.mixed():
            return self.model.encode_image(torch.arange(len(photos)))[1].float()

    def sample(self, trace):
        width, learnable = self.model.vision_proj.out_features, self.model.num_learnable
        text = dense_layers(self.model.text_encoder.shape.depth, COUNTED[self.task])
        layers = {**trace.layers, "text": text}
        image = flops.image_feature(self.tower.shape, layers, learnable, width)
        return image + flops.text_feature(self.model.text_encoder.shape, layers, learnable, width)


class Reranking(Retrieval):
    """The best candidates by features are judged once more, by how likely a captioner finds them.

    Attributes:
        captioner: of the same frozen image tower; it reads the tokens that the rule on trial leaves.
        unseen: [T], how likely it finds every caption without the photo.
    """

    task = RERANKING

    @torch.no_grad()
    def __init__(self, *inputs):
        super().__init__(*inputs)
        self.captioner = build(self.places, "caption", self.places.dense("caption"), evaluate=True)
        self.captioner = self.captioner.to(self.machine.device).eval()
        blank = Sequences.of(blank_tokens(self.tower).float().unsqueeze(0))
        captions = texts_of(self.photos)[0]
        some = (captions[start : start + 100] for start in range(0, len(captions), 100))
        with self.machine.mixed():
            self.unseen = torch.cat([likelihood(self.captioner, own, blank) for own in some])

    def readings(self, numbers, photos):
        states, features = self.model.encode_image(numbers)
        return [(feature, states.take([number])) for number, feature in enumerate(features)]

    @torch.no_grad()
    def scores(self, readings):
        features, states = zip(*readings, strict=True)
        photos, similarity = self.photos[: len(readings)], similarities(torch.stack(features), self.texts)

        def gain(photo: int, numbers: list[int], captions: list[str]) -> Tensor:
            return likelihood(self.captioner, captions, states[photo]) - self.unseen[numbers]

        with self.machine.mixed():
            found = reranked(similarity, photos, gain)
        return found | {"features": super().scores(features)["r_mean"]}


class Captioning(Subject):
    """A caption for each photo, greedily, word by word."""

    task = "caption"

    def readings(self, numbers, photos):
        return self.model.generate(numbers, num_beams=1)

    def scores(self, readings):
        return cider_of_photos(readings, [photo.texts for photo in self.photos[: len(readings)]])

    def outputs(self, states, photos):
        captions = self.model.tokenize([photo.texts[0] for photo in photos], "[DEC]", max_length=COUNTED[self.task])
        with torch.no_grad(), self.machine.mixed():
            logits, _ = self.model.text_decoder(captions.input_ids, captions.attention_mask, states=states)
        there = captions.attention_mask.bool()
        return logits.float().log_softmax(dim=-1)[there]

    def moved(self, outputs, dense):
        return float(F.kl_div(outputs, dense, reduction="batchmean", log_target=True))

    def sample(self, trace):
        bert = self.model.text_decoder.bert.shape
        layers = {**trace.layers, "decoder": dense_layers(bert.depth, COUNTED[self.task])}
        return flops.caption(self.tower.shape, bert, layers, self.model.num_learnable)


class Judging(Captioning):
    """Captions told apart by how likely they are with their own photo, and with one that borrowed them."""

    task = STATEMENTS

    def readings(self, numbers, photos):
        states, _ = self.model.encode(numbers, 0.0)
        return [
            likelihood(self.model, list(photo.texts), states.take([number])).float().cpu()
            for number, photo in enumerate(photos)
        ]

    def scores(self, readings):
        return apart_of_photos(readings, self.photos[: len(readings)])


class Answering(Subject):
    """Answers to all questions about a photo, the likeliest of a list."""

    task = "vqa"

    def __init__(self, *inputs):
        super().__init__(*inputs)
        self.answers = answer_list(self.places)
        self.encoded = self.model.encode_answers(self.answers)

    def readings(self, numbers, photos):
        found = []
        for number, photo in zip(numbers, photos, strict=True):
            chosen = self.model(number[None], list(photo.texts), self.encoded, train=False, k_test=K_TEST)
            found.append([self.answers[one] for one in chosen.tolist()])
        return found

    def scores(self, readings):
        return accuracy_of_photos(readings, [photo.answers for photo in self.photos[: len(readings)]])

    def outputs(self, states, photos):
        rows = []
        for number, photo in enumerate(photos):
            with torch.no_grad(), self.machine.mixed():
                question = self.model.tokenize(photo.texts, "[ENC]", max_length=35)
                own = states.take([number])
                rows.append(self.model.text_encoder(question.input_ids, question.attention_mask, states=own).first)
        return torch.cat(rows).float()

    def sample(self, trace):
        bert = self.model.text_encoder.shape
        layers = {**trace.layers, "text": dense_layers(bert.depth, COUNTED[self.task])}
        layers["decoder"] = dense_layers(bert.depth, COUNTED_ANSWER)
        return flops.vqa(self.tower.shape, bert, layers, self.model.num_learnable)


SUBJECTS: dict[str, type[Subject]] = {one.task: one for one in (Retrieval, Captioning, Judging, Answering, Reranking)}

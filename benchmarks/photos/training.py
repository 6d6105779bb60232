"""Trains the dense models and their blind twins: the text side alone, over the tokens of the frozen image tower.

Shapes: B photos, G texts of each, T texts, L tokens of a text, V words, D width, E width of a feature.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.photos.machine import Machine
from benchmarks.photos.world import Photo
from models.blip import BlipDecoder
from models.blip_retrieval import BlipRetrieval
from models.blip_vqa import BlipVQA
from models.med import Predictions, next_tokens, smoothed_cross_entropy
from utils import cosine_lr

LONGEST = 20  # words of a caption that is trained on: a batch is as long as its longest one
FITTING = 300  # steps of the projections alone
SILENT = -20.0  # bias of words that no caption has

logger = logging.getLogger("photos")

Batch = tuple[list[int], list[str], list[str]]  # photos by number, texts of all, and answers where there are any


@dataclass(frozen=True)
class Recipe:
    """How a text side is trained.

    Attributes:
        photos: of a step.
        texts: of each photo in a step.
        rate: of learning, where the weights are pre-trained.
        fresh: names of parameters that start from nothing, and learn at `fresh_rate`.
        warmup: steps in which the rates grow.
        epochs: over the photos.
    """

    photos: int
    texts: int
    rate: float
    fresh: tuple[str, ...]
    fresh_rate: float
    warmup: int = 50
    epochs: int = 1


RECIPES = {
    "retrieval": Recipe(64, 2, 5e-5, ("vision_proj", "text_proj", "temp"), 2e-4, 10),
    "caption": Recipe(24, 3, 2e-4, ("crossattention",), 1e-3, epochs=2),
    "vqa": Recipe(8, 8, 1e-4, (), 1e-4, epochs=3),
}


def train(
    model: nn.Module,
    photos: list[Photo],
    recipe: Recipe,
    loss_of: Callable[[Batch], Tensor],
    score: Callable[[], dict],
    machine: Machine,
    seed: int = 0,
) -> list[dict]:
    """Trains what requires a gradient.

    Args:
        model: in place.
        photos: the training split.
        recipe: how.
        loss_of: of a batch.
        score: of the model as it is, on validation; called after every epoch.
        machine: what it runs on.
        seed: of the order of the photos.

    Returns:
        The learning curve: loss, score and seconds of every epoch.
    """
    optimizer = optimizer_of(model, recipe)
    total = recipe.epochs * math.ceil(len(photos) / recipe.photos)
    curve, step, started = [], 0, time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(recipe.epochs):
        model.train()
        losses = []
        for batch in batches_of(photos, recipe, generator):
            with machine.mixed():
                loss = loss_of(batch)
            loss.backward()
            take_step(model, optimizer, recipe, step, total)
            losses.append(loss.item())
            step += 1
            if step % 50 == 0:
                logger.info("step %d of %d, loss %.3f", step, total, sum(losses[-50:]) / len(losses[-50:]))
        seconds = time.perf_counter() - started
        model.eval()
        curve.append({"epoch": epoch + 1, "loss": sum(losses) / len(losses), "seconds": seconds, **score()})
        logger.info(json.dumps(curve[-1]))
    return curve


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW at the recipe's two rates."""
    rates = {recipe.rate: [], recipe.fresh_rate: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fresh = any(part in name for part in recipe.fresh)
            rates[recipe.fresh_rate if fresh else recipe.rate].append(parameter)
    groups = [{"params": parameters, "lr": rate, "peak": rate} for rate, parameters in rates.items() if parameters]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, total: int) -> None:
    """Moves the weights by their gradients, at the rates of `step` of `total`: warmed up, then half a cosine."""
    for group in optimizer.param_groups:
        warm = min(1.0, (step + 1) / recipe.warmup)
        group["lr"] = warm * cosine_lr(group["peak"], 0.0, step, total)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def batches_of(photos: list[Photo], recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
    """An epoch: all photos in random order, each with so many of its texts, some of them twice where it has too few."""
    for some in torch.randperm(len(photos), generator=generator).split(recipe.photos):
        texts, answers = [], []
        for photo in (photos[number] for number in some.tolist()):
            order = torch.randperm(len(photo.texts), generator=generator).tolist()
            chosen = [order[place % len(order)] for place in range(recipe.texts)]
            texts += [photo.texts[one] for one in chosen]
            answers += [photo.answers[one] for one in chosen if photo.answers]
        yield some.tolist(), texts, answers


def short(photos: list[Photo]) -> list[Photo]:
    """The photos without their captions of many words, but for those that have no others."""
    kept = [tuple(text for text in photo.texts if len(text.split()) <= LONGEST) for photo in photos]
    return [Photo(photo.name, texts or photo.texts) for photo, texts in zip(photos, kept, strict=True)]


class Captions:
    """The captioner's loss over the words that captions have, at the tokens that there are.

    Of 30,524 words some thousands occur: logits of the others would be half of the work, and teach nothing.

    Args:
        model: the biases of the other words are set so low that it never says them.
        photos: the training split.
    """

    def __init__(self, model: BlipDecoder, photos: list[Photo]):
        self.model = model
        ids = model.tokenizer([text for photo in photos for text in photo.texts]).input_ids
        head = model.text_decoder.cls["predictions"]
        words = sorted({word for text in ids for word in text})
        self.words = torch.tensor(words, device=head.bias.device)  # [V]
        with torch.no_grad():
            others = torch.ones_like(head.bias, dtype=torch.bool).index_fill(0, self.words, False)
            head.bias[others] = SILENT

    def loss(self, batch: Batch) -> Tensor:
        """Mean over all tokens of a batch of B photos and B * G captions."""
        photos, captions, _ = batch
        states, _ = self.model.encode(torch.tensor(photos), 0.0)
        text = self.model.tokenize(captions, "[DEC]", max_length=40)
        output = self.model.text_decoder.bert(text.input_ids, text.attention_mask, causal=True, states=states)
        targets = next_tokens(text.input_ids, text.attention_mask)
        there = targets >= 0
        logits = logits_of(self.model.text_decoder.cls["predictions"], output.states[:, :-1][there], self.words)
        places = torch.searchsorted(self.words, targets[there])
        return smoothed_cross_entropy(logits, places.unsqueeze(1)).mean()


def logits_of(head: Predictions, states: Tensor, words: Tensor) -> Tensor:
    """Logits [..., V] of some words alone."""
    return F.linear(head.transform(states), head.decoder.weight[words], head.bias[words])


class Answers:
    """The VQA model's own loss, where everybody gives a question one answer.

    A model that begins as a captioner gets back the biases of the words that no caption has, since an answer may.
    """

    def __init__(self, model: BlipVQA):
        self.model = model
        bias = model.text_decoder.cls["predictions"].bias
        with torch.no_grad():
            bias[bias < SILENT / 2] = 0.0

    def loss(self, batch: Batch) -> Tensor:
        """Mean over the questions of a batch of B photos and B * G questions."""
        photos, questions, answers = batch
        once = torch.ones(len(answers), device=self.model.space_dict.device)
        return self.model(torch.tensor(photos), questions, answers, n=once.long(), weights=once)["loss_task"]


class Pairs:
    """The contrastive loss of a batch's captions over all training photos, whose features a frozen tower makes cheap.

    Args:
        model: its projections are fresh; the image's takes features of unit spread.
        cls: [n, D], the class tokens of all training photos.
    """

    def __init__(self, model: BlipRetrieval, cls: Tensor):
        self.model, self.cls = model, cls.float()

    def loss(self, batch: Batch) -> Tensor:
        """Of a batch of B photos and B * G captions."""
        photos, captions, _ = batch
        text = self.model.tokenize(captions, "[CLS]", max_length=35)
        output = self.model.text_encoder(text.input_ids, text.attention_mask)
        owners = torch.tensor(photos, device=self.cls.device).repeat_interleave(len(captions) // len(photos))
        return self.compare(output.first, owners)

    def compare(self, texts: Tensor, owners: Tensor) -> Tensor:
        """Each caption looks for its photo among all, each of these photos for its captions among the batch's.

        Args:
            texts: [T, D], the first tokens of captions.
            owners: [T], their photos.
        """
        model = self.model
        with torch.autocast(texts.device.type, enabled=False):
            texts = F.normalize(model.text_proj(texts.float()), dim=-1)  # [T, E]
            images = F.normalize(model.vision_proj(self.cls), dim=-1)  # [n, E]
            similarity = texts @ images.T / model.temp  # [T, n]
        photos = owners.unique()
        own = photos.unsqueeze(1) == owners  # [B, T]
        to_text = similarity[:, photos].T.log_softmax(dim=1)
        return (F.cross_entropy(similarity, owners) - (to_text * own).sum(dim=1).div(own.sum(dim=1)).mean()) / 2

    def fit(self, photos: list[Photo], machine: Machine, texts: int = 3) -> None:
        """Fits the projections alone to the towers as they are, whose features are computed once.

        Args:
            photos: the training split.
            machine: what the text tower runs on.
            texts: captions of each photo.
        """
        first, owners = self._first_tokens([photo.texts[:texts] for photo in photos], machine)
        standardise(self.model.text_proj, first)
        fitted = [*self.model.vision_proj.parameters(), *self.model.text_proj.parameters(), self.model.temp]
        optimizer = torch.optim.AdamW(fitted, weight_decay=0.05, fused=True)
        for step in range(FITTING):
            some = torch.randint(len(owners), (512,))
            optimizer.param_groups[0]["lr"] = cosine_lr(2e-3, 0.0, step, FITTING)
            loss = self.compare(first[some], owners[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0:
                logger.info("fitting step %d, loss %.3f", step, loss.item())

    @torch.no_grad()
    def _first_tokens(self, texts: list[tuple[str, ...]], machine: Machine) -> tuple[Tensor, Tensor]:
        """First tokens [T, D] of captions, and their photos [T]."""
        self.model.eval()
        everything = sorted(
            ((text, photo) for photo, some in enumerate(texts) for text in some), key=lambda one: len(one[0])
        )
        first = []
        for start in range(0, len(everything), 128):
            text = self.model.tokenize([text for text, _ in everything[start : start + 128]], "[CLS]", max_length=35)
            with machine.mixed():
                first.append(self.model.text_encoder(text.input_ids, text.attention_mask).first.float())
        return torch.cat(first), torch.tensor([photo for _, photo in everything], device=self.cls.device)


@torch.no_grad()
def standardise(projection: nn.Linear, inputs: Tensor) -> None:
    """Changes a fresh projection so that it acts on standardised inputs [n, D]; dead ones count as hardly spread."""
    spread, mean = torch.std_mean(inputs.float(), dim=0)
    spread = spread.clamp(min=0.05 * spread.median())
    projection.weight.div_(spread)
    projection.bias.sub_(projection.weight @ mean)

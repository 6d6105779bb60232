"""Teaches guides to foretell from the image what a text will look at; the dense captioner's cross-attention tells.

    sum over layers of KL(A || G_l) / M,

with A the share of the cross-attention that a token gets, the mean over words, captions, heads and layers of the
captioner, and G_l what the guide of layer l foretells from the tokens of the dense image tower there. The tower and the
captioner stay as they are. See `benchmarks.comparison.guided` for G.

Shapes: B photos, G captions of each of L words, N tokens besides the class token, D width, M layers, H heads.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.comparison.guided import foretold
from benchmarks.comparison.rules import Whole, share
from benchmarks.photos.dense import build
from benchmarks.photos.frozen import batches
from benchmarks.photos.machine import Machine
from benchmarks.photos.training import LONGEST, Recipe, batches_of, optimizer_of, take_step
from benchmarks.photos.world import Photo, Places, read_split
from madtp.method.layout import Sequences
from madtp.shared.weights import checkpoint
from models.blip import BlipDecoder

RECIPE = Recipe(photos=8, texts=5, rate=0.1, fresh=(), fresh_rate=0.1, warmup=1)
STEPS = 300

logger = logging.getLogger("photos")


class Entering(Whole):
    """Keeps everything, and notes the tokens that every layer prunes among.

    Attributes:
        tokens: [B, N, D] of every layer.
    """

    def __init__(self):
        self.tokens: list[Tensor] = []

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        self.tokens.append(x[:, 1:])
        return super().prune(x, scores, alignment, temperature, min_keep, protected)


def guides_of(places: Places, machine: Machine) -> Tensor:
    """The guides [M, D] of the frozen image tower; taught where the file is not there yet."""
    file = places.output / "guides.pth"
    if not file.exists():
        captioner = build(places, "caption", places.dense("caption"), evaluate=True).to(machine.device).eval()
        checkpoint.save(file, guides=taught(captioner, places, machine))
    return torch.load(file, weights_only=True)["guides"].to(machine.device)


def taught(captioner: BlipDecoder, places: Places, machine: Machine, seed: int = 1) -> Tensor:
    """Guides [M, D] that foretell what a captioner looks at on training photos."""
    photos, tower = read_split(places, "caption", "train"), captioner.visual_encoder
    guides = nn.ParameterList([torch.zeros(len(tower.blocks), tower.embed_dim, device=machine.device)])
    optimizer = optimizer_of(guides, RECIPE)
    for step, (some, captions) in enumerate(lessons(photos, seed)):
        files = [places.photos("caption") / photos[number].name for number in some]
        image = torch.cat(list(batches(files, tower.shape.image_size))).to(machine.device)
        with torch.no_grad(), machine.mixed():
            tokens, looked = shown(captioner, image, captions)
        told = [foretold(x, guide).log_softmax(dim=1) for x, guide in zip(tokens, guides[0], strict=True)]
        loss = sum(F.kl_div(one, looked, reduction="batchmean") for one in told) / len(told)
        loss.backward()
        take_step(guides, optimizer, RECIPE, step, STEPS)
        if (step + 1) % 50 == 0:
            logger.info("guides: step %d of %d, loss %.3f", step + 1, STEPS, loss.item())
    return guides[0].detach()


def lessons(photos: list[Photo], seed: int) -> Iterator[tuple[list[int], list[str]]]:
    """Numbers of photos and captions of theirs, for every step."""
    generator = torch.Generator().manual_seed(seed)
    endless = chain.from_iterable(batches_of(photos, RECIPE, generator) for _ in count())
    return ((some, captions) for some, captions, _ in islice(endless, STEPS))


def shown(captioner: BlipDecoder, image: Tensor, captions: Sequence[str]) -> tuple[list[Tensor], Tensor]:
    """The tokens that every layer of the dense tower prunes among, and what share the captions pay to each, [B, N].

    Args:
        captioner: whose rule of keeping is set aside.
        image: [B, 3, H, W].
        captions: B * G.
    """
    entering, before = Entering(), captioner.keep
    captioner.keep = lambda x, own=None, align=False, together=1: Sequences(x, entering)
    try:
        states, _ = captioner.encode(image, 1.0)
    finally:
        captioner.keep = before
    text = captioner.tokenize(captions, "[DEC]", max_length=LONGEST)
    with listened(captioner) as heard:
        captioner.text_decoder.bert(text.input_ids, text.attention_mask, causal=True, states=states)
    words = text.attention_mask.float().view(len(image), 1, -1, 1)  # [B, 1, G * L, 1]
    paid = sum((weights * words).sum(dim=(1, 2)) for weights in heard)  # [B, 1 + N]
    return entering.tokens, share(paid[:, 1:])


@contextmanager
def listened(captioner: BlipDecoder) -> Iterator[list[Tensor]]:
    """What is in the list after a pass that is made meanwhile: the cross-attention [B, H, G * L, 1 + N] of every layer.

    Queries [B * G, L, D] and keys [B, 1 + N, D] are overheard where they are projected.
    """
    queries, keys, heard, handles = [], [], [], []
    attentions = [layer.crossattention.self for layer in captioner.text_decoder.bert.encoder.layer]
    for one in attentions:
        handles.append(one.query.register_forward_hook(lambda module, inputs, output: queries.append(output)))
        handles.append(one.key.register_forward_hook(lambda module, inputs, output: keys.append(output)))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
    for one, query, key in zip(attentions, queries, keys, strict=True):
        query, key = query.float().view(len(key), -1, query.shape[-1]), key.float()
        query, key = (tokens.unflatten(-1, (one.num_heads, -1)).transpose(1, 2) for tokens in (query, key))
        heard.append((query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1))

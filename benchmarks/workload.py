"""A task's model with random weights, a batch for it, and the forward pass and training step that are timed.

Base-size models (CLIP: ViT-L/14@336) do the work that their GFLOPs count, on seeded random inputs.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.plain_attention import plain_attention
from clip.tokenizer import VOCABULARY
from compress_caption_dtp import Caption
from compress_nlvr_dtp import NLVR
from compress_retrieval_clip_dtp import RetrievalClip
from compress_retrieval_dtp import RetrievalCOCO
from compress_vqa_dtp import VQA
from madtp.cost.temperature import calibrate
from madtp.cost.trace import Trace
from madtp.method.keep import Coverage, Keep, keep_batch, keep_sample
from madtp.run import config as configuration
from madtp.run.optimization import Optimization
from madtp.run.precision import autocast, precision
from madtp.run.task import Task
from madtp.shared.inference import CastLinear, prepare

TASKS = {"nlvr": NLVR, "caption": Caption, "vqa": VQA, "retrieval": RetrievalCOCO, "clip": RetrievalClip}
WORDS = {"nlvr": 34, "caption": 10, "vqa": 12, "retrieval": 12, "clip": 12}  # of a text, which all have as many

CLIP = {"embed_dim": 768, "vision_width": 1024, "vision_layers": 24, "vision_patch_size": 14}
CLIP |= {"transformer_width": 768, "transformer_layers": 12, "context_length": 77}  # ViT-L/14@336
SIZES = {  # what the tasks' own files say besides the defaults
    "vqa": {"image_size": 480},
    "retrieval": {"vit_grad_ckpt": True, "vit_ckpt_layer": 4},
    "clip": {"image_size": 336, "clip": CLIP},
}
BERT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
BERT |= {"vocab_size": 30600, "max_position_embeddings": 64}
SMALL_CLIP = CLIP | {"embed_dim": 64, "vision_width": 128, "vision_layers": 2, "vision_patch_size": 16}
SMALL_CLIP |= {"transformer_width": 64, "transformer_layers": 2}
SMALL = {"image_size": 64, "med_config": BERT, "vit": {"embed_dim": 128, "depth": 2, "num_heads": 2, "patch_size": 16}}
SMALL |= {"sd_num": 8, "sd_dim": 128}
HALF, LITTLE = 0.5, 0.3  # reduce ratios


class Workload:
    """What is timed.

    Args:
        name: of the task.
        batch_size: samples; one of NLVR2 has two images.
        images: "noise", "spread" or "equal", see `random_images`.
        device: where the model runs.
        dtype: of mixed precision.
        small: two narrow layers instead, to see that everything runs.
        own: entries of the configuration that are to be others.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        images: str,
        device: str,
        dtype: torch.dtype,
        small: bool = False,
        own: dict | None = None,
    ):
        self.name, self.dtype, self.device = name, dtype, torch.device(device)
        self.task: Task = TASKS[name]()
        with tempfile.TemporaryDirectory() as folder:
            self.config = sizes(name, small) | {"tokenizer": vocabulary(folder), "init_lr": 0.0} | (own or {})
            self.task.config = self.config
            self.model = self.task.build_model(self.config, evaluate=False).to(self.device).eval()
        self.images, self.optimization = images, None
        self.unprepare = prepare(self.model, dtype)
        self.resize(batch_size)

    def resize(self, batch_size: int) -> None:
        """Makes a batch of so many samples."""
        self.batch = random_batch(self.name, batch_size, self.images, self.config, self.device)

    @property
    def depth(self) -> int:
        """Layers of the image tower."""
        return len(image_layers(self.model))

    def rule(self, name: str) -> Keep:
        """The rule of keeping tokens that the side `name` of a comparison goes by."""
        return {"sample": keep_sample, "coverage": Coverage(self.depth)}.get(name, keep_batch)

    @torch.inference_mode()
    def forward(self, temperature: float, trace: Trace | None = None) -> None:
        """What the GFLOPs count: one pass over images and texts (retrieval: and pairs, VQA: and one answer)."""
        trace = trace or Trace()
        with autocast(self.dtype, self.device):
            if self.name == "caption":
                self.model(self.batch["image"], self.batch["caption"], temperature, train=False, trace=trace)
            elif self.name == "vqa":
                self.task.probe(self.model, self.batch, temperature, trace)
            elif self.name == "retrieval":
                states, _ = self.model.encode_image(self.batch["image"], temperature, trace)
                text = self.model.encode_captions(self.batch["caption"])
                self.model.encode_text(*text, temperature, trace)
                self.model.match(*text, states, temperature=temperature, trace=trace)
            else:
                self.task.predict(self.model, self.batch, temperature, trace)

    def step(self, temperature: float) -> None:
        """A training step: forward, backward, AdamW."""
        with autocast(self.dtype, self.device):
            parts = self.task.losses(self.model, self.batch, temperature, progress=0.0)
            loss = sum(self.task.loss_weights[name] * part for name, part in parts.items())
        self.optimization.step(loss, 0)

    def prepare_training(self) -> None:
        """Makes the optimizer and its state."""
        self.unprepare()
        self.model.train()
        self.optimization = Optimization(self.model, self.config, self.dtype, accum=1, batches=1)
        self.step(0.0)

    def gflops(self, temperature: float) -> float:
        """Mean cost of the samples."""
        trace = Trace()
        self.forward(temperature, trace)
        return float(np.mean(self.task.cost(self.model, trace)))

    def temperature(self, p: float) -> float:
        """The T, or of coverage the amount, at which this batch costs 1 - p of dense by the model's rule.

        Raises:
            UserError: there is none.
        """
        dense = self.gflops(0.0)
        return calibrate(lambda temperature: self.gflops(temperature) / dense, 1 - p, start=1.0)

    def fixed(self) -> int:
        """Bytes of parameters, of what inference copied of them, of buffers and optimizer state."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        copies = (value for module in self.model.modules() for value in vars(module).values())
        tensors += [one.weight for one in copies if isinstance(one, CastLinear) and "weight" in vars(one)]
        if self.optimization:
            states = self.optimization.optimizer.state.values()
            tensors += [value for state in states for value in state.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def side(self, name: str, temperature: float, train: bool = False, maximum: str = "amax") -> Callable[[], None]:
        """What is timed: the forward pass or the training step by the rule that `name` goes by, or "plain"."""

        def work() -> None:
            self.model.keep = self.rule(name)
            with plain_attention(maximum) if name == "plain" else nullcontext():
                (self.step if train else self.forward)(temperature)

        return work


def sizes(name: str, small: bool) -> dict:
    """The configuration of a task's model: the published one's, or two narrow layers."""
    config = configuration.defaults(TASKS[name].name) | SIZES.get(name, {})
    if small:
        config |= SMALL | ({"clip": SMALL_CLIP, "queue_size": 64} if name == "clip" else {})
    return config


def image_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of the image tower."""
    return model.visual.transformer.resblocks if hasattr(model, "visual") else model.visual_encoder.blocks


def vocabulary(folder: str) -> str:
    """Writes a vocabulary of BERT's size and returns its folder."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of"]
    words = [f"w{number}" for number in range(30522 - len(special))]
    (Path(folder) / "vocab.txt").write_text("\n".join(special + words))
    return folder


def random_images(kind: str, size: int, side: int, generator: torch.Generator) -> Tensor:
    """Noise [size, 3, side, side]: all over every image, over more and more of each next one, or the same in all."""
    images = torch.randn(size, 3, side, side, generator=generator)
    if kind == "spread":
        for image, busy in zip(images, torch.linspace(0.1, 1, size), strict=True):
            image[:, int(busy * side) :] *= 0.05
    return images[:1].expand_as(images) if kind == "equal" else images


def random_ids(size: int, length: int, generator: torch.Generator) -> Tensor:
    """Token ids [size, length] of CLIP, for which no tokenizer is needed: start, words, end, zeros."""
    ids = torch.zeros(size, length, dtype=torch.long)
    words = WORDS["clip"]
    ids[:, 0], ids[:, words + 1] = VOCABULARY - 2, VOCABULARY - 1
    ids[:, 1 : words + 1] = torch.randint(1, VOCABULARY - 2, (size, words), generator=generator)
    return ids


def model_flags(document: str) -> argparse.ArgumentParser:
    """A command line that says which model is timed, at which p and in which precision."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="nlvr")
    reached = f"share of the GFLOPs to remove, default {HALF}; {LITTLE} of --small, which cannot lose as many"
    parser.add_argument("--p", type=float, default=argparse.SUPPRESS, help=reached)
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    parser.add_argument("--small", action="store_true", help="two narrow layers, to see that it runs")
    parser.add_argument("--output", help="JSON-lines file to add the rows to")
    return parser


def ratio_of(args: argparse.Namespace) -> float:
    """The p of `model_flags`, or that which the model reaches."""
    return getattr(args, "p", LITTLE if args.small else HALF)


def workload_of(args: argparse.Namespace) -> Workload:
    """What `model_flags`, a batch size and a device ask for."""
    dtype = precision(args.amp, torch.device(args.device))
    return Workload(args.task, args.batch, "noise", args.device, dtype, args.small)


def random_texts(name: str, size: int) -> list[str]:
    """Texts of a task's length."""
    draw, known = random.Random(0), [f"w{number}" for number in range(20000)]
    return [" ".join(draw.choices(known, k=WORDS[name])) for _ in range(size)]


def random_batch(name: str, size: int, kind: str, config: dict, device: torch.device) -> dict:
    """Noise and words of a task's kind."""
    generator = torch.Generator().manual_seed(0)
    images = [random_images(kind, size, config["image_size"], generator).to(device) for _ in "01"]
    texts = random_texts(name, 1) * size if kind == "equal" else random_texts(name, size)
    captions = [f"{config['prompt']}{text}" if name == "caption" else text for text in texts]
    if name == "clip":
        captions = random_ids(size, config["clip"]["context_length"], generator).to(device)
        captions = captions[:1].repeat(size, 1) if kind == "equal" else captions
    return {
        "image": images[0],
        "image0": images[0],
        "image1": images[1],
        "text": texts,
        "question": texts,
        "caption": captions,
        "answer": [f"w{number}" for number in range(size)],
        "n": [1] * size,
        "weights": torch.ones(size, device=device),
        "target": torch.arange(size, device=device) % 2,
        "idx": torch.arange(size, device=device),
        "index": torch.arange(size),
    }

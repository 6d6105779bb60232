"""The dense models on photos, and the same models trained without ever seeing a photo.

    python -m benchmarks.photos --dense retrieval caption vqa

The image tower stays as it came; its tokens are computed once. A blind twin is trained alike on the tokens of one
blank picture, and says how much of a score comes from the texts alone.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.photos import training
from benchmarks.photos.frozen import Frozen, blank_tokens, kept_tokens
from benchmarks.photos.machine import Machine
from benchmarks.photos.scoring import accuracy_of_photos, cider_of_photos, recall_of_photos
from benchmarks.photos.world import FOLDER, Photo, Places, answer_list, read_split, texts_of
from madtp.run import config as configuration
from madtp.shared.weights import checkpoint
from models.blip import blip_decoder
from models.blip_retrieval import BlipRetrieval, blip_retrieval
from models.blip_vqa import BlipVQA, blip_vqa
from utils import UserError, prepare_output, set_seed

WATCHED = 250  # validation photos whose captions are scored after an epoch
K_TEST = 32  # answers ranked to the end
QUEUE = 64  # of the momentum queue, which nothing here trains
FEATURE_WIDTH = 256
CONFIGURATION = {"retrieval": "retrieval_flickr.yaml", "caption": "caption_coco.yaml", "vqa": "vqa.yaml"}

logger = logging.getLogger("photos")


def configuration_of(places: Places, task: str) -> dict:
    """What `python -m madtp towers` wrote: sizes of both towers, the tokenizer's folder."""
    file = places.towers / CONFIGURATION[task]
    if not file.exists():
        towers = f"--image FOLDER --text FOLDER --image_size 168 --output_dir {places.towers}"
        raise UserError(f"no {file}: `python -m madtp towers {towers}` writes it")
    return configuration.resolve(str(file), file.stem if task == "retrieval" else task)


def build(places: Places, task: str, pretrained: str | Path, evaluate: bool = False) -> nn.Module:
    """A task's model with the weights of a file."""
    config = configuration_of(places, task)
    # Without dropout of its weights attention is fused; that of the hidden states stays.
    text = {**config["med_config"], "attention_probs_dropout_prob": 0.0}
    sizes = {"image_size": config["image_size"], "vit": config["vit"], "med_config": text}
    inputs = {"pretrained": str(pretrained), "evaluate": evaluate, "config": {**config, "drop_path": 0}, **sizes}
    if task == "retrieval":
        return blip_retrieval(**inputs, embed_dim=FEATURE_WIDTH, queue_size=QUEUE)
    return blip_decoder(**inputs, prompt="") if task == "caption" else blip_vqa(**inputs)


def start_of(places: Places, task: str) -> Path:
    """Where a dense model starts: from the towers, or from a captioner, which can look."""
    return places.dense("caption") if task == "vqa" else places.towers / "towers.pth"


def train_dense(places: Places, task: str, blind: bool, machine: Machine, epochs: int = 0) -> list[dict]:
    """Trains a dense model or a blind twin and saves it; the learning curve goes to the results too."""
    set_seed(1)
    prepare_output(places.output)
    model = build(places, task, start_of(places, task)).to(machine.device)
    tower, splits = model.visual_encoder, {split: read_split(places, task, split) for split in ("train", "val")}
    known = {} if blind else kept_tokens(tower, places.photos(task), places.tokens(FOLDER[task]), machine)
    blank = blank_tokens(tower)

    def frozen(photos: list[Photo]) -> Frozen:
        tokens = [blank.expand(len(photos), -1, -1)] if blind else [torch.stack([known[one.name] for one in photos])]
        return Frozen(tower, tokens[0].to(machine.device))

    towers = {split: frozen(photos) for split, photos in splits.items()}
    recipe = training.RECIPES[task]
    recipe = replace(recipe, epochs=epochs) if epochs else recipe
    photos = training.short(splits["train"]) if task == "caption" else splits["train"]
    freeze(model)
    loss_of = objective(task, model, photos, towers["train"], machine)

    def score() -> dict:
        model.visual_encoder = towers["val"]
        with torch.inference_mode(), machine.mixed():
            found = watch(places, task, model, splits["val"])
        model.visual_encoder = tower
        checkpoint.save(places.dense(task, blind), model=without_guidance(model))
        model.visual_encoder = towers["train"]
        return found

    model.visual_encoder = towers["train"]
    logger.info("before training: %s", score())
    curve = training.train(model, photos, recipe, loss_of, score, machine)
    prepare_output(places.results)
    with (places.results / "photos_dense.jsonl").open("a") as file:
        for line in curve:
            file.write(json.dumps({"task": task, "blind": blind, **line}) + "\n")
    return curve


def objective(task: str, model: nn.Module, photos: list[Photo], frozen: Frozen, machine: Machine):
    """The loss of a batch."""
    if task == "caption":
        return training.Captions(model, photos).loss
    if task == "vqa":
        return training.Answers(model).loss
    cls = frozen.tokens[:, 0]
    training.standardise(model.vision_proj, cls)
    pairs = training.Pairs(model, cls)
    pairs.fit(photos, machine)
    return pairs.loss


def freeze(model: nn.Module) -> None:
    """Leaves the text side alone to be trained: no image tower, no guidance, no momentum twins."""
    for name, parameter in model.named_parameters():
        out = name.startswith("visual_encoder") or "_m." in name or is_guidance(name)
        parameter.requires_grad_(parameter.requires_grad and not out)


def without_guidance(model: nn.Module) -> dict[str, Tensor]:
    """The weights without the learnable tokens and what aligns with them, which a dense model does not train."""
    return {name: value for name, value in model.state_dict().items() if not is_guidance(name)}


def is_guidance(name: str) -> bool:
    """Whether a parameter belongs to the alignment guidance."""
    return "query_model" in name or "space_dict" in name


def watch(places: Places, task: str, model: nn.Module, photos: list[Photo]) -> dict:
    """The score on validation while a model is trained."""
    if task == "retrieval":
        image, text = image_features(model, photos), text_features(model, photos)
        scores = recall_of_photos(image, text, texts_of(photos)[1])
        return {name: float(values.mean()) for name, values in scores.items()}
    if task == "caption":
        photos = photos[:WATCHED]
        captions = [text for some in numbers(photos) for text in model.generate(some, num_beams=1)]
        scores = cider_of_photos(captions, [photo.texts for photo in photos])
        return {"CIDEr": float(scores["CIDEr"].mean()), "Bleu_4": scores["Bleu_4"]}
    answers = answered(model, photos, answer_list(places))
    scores = accuracy_of_photos(answers, [photo.answers for photo in photos])
    return {"accuracy": float(scores["right"].sum() / scores["questions"].sum())}


def numbers(photos: list[Photo], batch: int = 32) -> tuple[Tensor, ...]:
    """The photos' numbers, batch by batch."""
    return torch.arange(len(photos)).split(batch)


def image_features(model: BlipRetrieval, photos: list[Photo]) -> Tensor:
    """Features [I, E] of photos by number."""
    return torch.cat([model.encode_image(some)[1] for some in numbers(photos)])


def text_features(model: BlipRetrieval, photos: list[Photo], batch: int = 100) -> Tensor:
    """Features [T, E] of all captions."""
    texts = texts_of(photos)[0]
    features = []
    for start in range(0, len(texts), batch):
        text = model.tokenize(texts[start : start + batch], "[CLS]", max_length=35)
        features.append(model.encode_text(text.input_ids, text.attention_mask))
    return torch.cat(features)


def answered(model: BlipVQA, photos: list[Photo], answers: list[str]) -> list[list[str]]:
    """The model's answers to the questions of every photo."""
    encoded = model.encode_answers(answers)
    found = []
    for number, photo in enumerate(photos):
        image = torch.tensor([number])
        chosen = model(image, list(photo.texts), encoded, train=False, k_test=K_TEST)
        found.append([answers[one] for one in chosen.tolist()])
    return found

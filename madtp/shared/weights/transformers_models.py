"""Whole models in the form of the transformers library: which there are, and what config.json says of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from madtp.method.errors import UserError
from madtp.shared.weights import transformers_names as names
from madtp.shared.weights.architecture import MED, vit_sizes
from madtp.shared.weights.folders import CONFIG, WHOLE, read_config
from madtp.shared.weights.transformers_sizes import TOWERS, read_sizes, refuse, side

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MODELS = {"blip": "BLIP", "clip": "CLIPModel"}
TASKS = {
    "BlipForConditionalGeneration": "caption",
    "BlipForQuestionAnswering": "vqa",
    "BlipForImageTextRetrieval": "retrieval",
    "CLIPModel": "retrieval_clip",
}
VOCABULARIES = ("vocab.txt", "tokenizer.json")


def class_of(path: str | Path) -> str:
    """The class that a folder of the library, or a file in one, says it was saved from; empty where it is no such."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.name in WHOLE
    classes = read_config(folder).get("architectures") if named and (folder / CONFIG).is_file() else None
    return str(classes[0]) if isinstance(classes, list) and classes else ""


def task_of(path: str | Path) -> str:
    """The task that such a class is for, or an empty string."""
    return TASKS.get(class_of(path), "")


def is_theirs(state: dict[str, Tensor]) -> bool:
    """Whether weights have the names of a whole model of that library."""
    return any(name.startswith(("vision_model.", "text_model.")) for name in state)


def check_kind(folder: str | Path) -> None:
    """Refuses a folder that is no whole model, before its weights are read.

    Raises:
        UserError: says what it is, and where it belongs.
    """
    kind = read_config(folder)["model_type"]
    if kind in TOWERS:
        raise UserError(
            f"{folder} is a {TOWERS[kind]}, one tower: `python -m madtp towers` makes a start of two of them"
        )
    if kind not in MODELS:
        raise UserError(f"{folder} is a model of type {kind!r}; of transformers' these are read: {', '.join(TASKS)}")


def converted(state: dict[str, Tensor], folder: Path) -> dict:
    """The content of a checkpoint of ours: weights by our names, and the architecture that config.json says.

    Args:
        state: by their names.
        folder: that has the config.json of these weights.

    Raises:
        UserError: there is none, or it says something that ours cannot be.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder}: the names of its weights are transformers', whose heads, norms and activations only {CONFIG} "
            "tells; put it beside the weights"
        )
    check_kind(folder)
    if "quantization_config" in read_config(folder):
        raise UserError(f"{folder} holds quantized weights; take those that they were made of")
    config = read_sizes(folder, MODELS)
    return (_blip if config.model_type == "blip" else _clip)(state, config, folder)


def _blip(state: dict[str, Tensor], config: PretrainedConfig, folder: Path) -> dict:
    vision, text = config.vision_config, config.text_config
    if any(name.startswith("text_model.") for name in state):
        raise UserError(f"{folder} is a BlipModel, whose parts no task trained; take the BlipFor... of your task")
    for tower in (vision, text):
        refuse(tower.hidden_act != "gelu", folder, f"hidden_act {tower.hidden_act}", "BLIP's is gelu")
    refuse(not text.tie_word_embeddings, folder, "tie_word_embeddings false", "BLIP's output matrix is its words'")
    vit = vit_sizes(
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        side(vision.patch_size, folder),
        vision.intermediate_size,
        vision.layer_norm_eps,
    )
    ours, unknown = names.to_ours(state, names.BLIP)
    architecture = {"image_size": side(vision.image_size, folder), "vit": vit}
    architecture |= {
        "med_config": {name: getattr(text, name) for name in MED},
        "embed_dim": config.image_text_hidden_size,
    }
    if any((folder / name).is_file() for name in VOCABULARIES):
        architecture["tokenizer"] = str(folder)
    # No inference needs the contrastive temperature, and their class does not have it.
    return {"model": ours | {name: state[name] for name in unknown}, "architecture": architecture, "absent": ("temp",)}


def _clip(state: dict[str, Tensor], config: PretrainedConfig, folder: Path) -> dict:
    ours, unknown = names.to_ours(state, names.CLIP)
    unknown = [name for name in unknown if not name.endswith(".position_ids")]
    vision, text = config.vision_config, config.text_config
    for name in ("hidden_act", "layer_norm_eps"):
        pair = getattr(vision, name), getattr(text, name)
        refuse(pair[0] != pair[1], folder, f"{name} {pair[0]} of images and {pair[1]} of texts", "ours has one of both")
    return {
        "model": ours | {name: state[name] for name in unknown},
        "architecture": {
            "image_size": side(vision.image_size, folder),
            "activation": vision.hidden_act,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "text_head_width": text.hidden_size // text.num_attention_heads,
            "norm_eps": vision.layer_norm_eps,
        },
    }

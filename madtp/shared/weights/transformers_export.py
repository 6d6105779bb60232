"""Our models as the transformers library keeps them: weights by its names, and what its configuration files say.

What prunes stays behind: its classes have no place for learnable tokens, and no temperature.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from madtp.method.errors import UserError
from madtp.shared.files import whole_file, write_atomic
from madtp.shared.weights import transformers_names as names
from madtp.shared.weights.folders import CONFIG, PREPROCESSOR, WHOLE

CLASSES = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "retrieval": "BlipForImageTextRetrieval",
    "retrieval_clip": "CLIPModel",
}
# What has a name of theirs and no place; what only pruning or momentum contrast needs has not even a name.
OURS_ALONE = ("position_ids", "cls.predictions.decoder")


def class_of(task: str) -> str:
    """The class for a task's models.

    Raises:
        UserError: there is none.
    """
    if task not in CLASSES:
        raise UserError(
            f"transformers has no class for {task}: NLVR2's text encoder has two cross-attentions in every layer; its "
            "checkpoint stays as it is"
        )
    return CLASSES[task]


def weights(state: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """A model's weights by the names of its class."""
    kept = {name: value for name, value in state.items() if not any(f".{part}." in f".{name}." for part in OURS_ALONE)}
    return names.to_theirs(kept, names.CLIP if task == "retrieval_clip" else names.BLIP)


def blip_config(task: str, architecture: Mapping, words: Mapping[str, int]) -> dict:
    """config.json of a BLIP.

    Args:
        task: of the model.
        architecture: `vit` as a dict, `med_config`, `image_size` and, of retrieval, `embed_dim`.
        words: numbers of the special tokens "[DEC]" and "[SEP]".

    Raises:
        UserError: VQA's towers differ in width, which its class cannot build.
    """
    vit, med = architecture["vit"], architecture["med_config"]
    width = vit["embed_dim"]
    if task == "vqa" and med["hidden_size"] != width:
        raise UserError(
            f"transformers' class for VQA has questions as wide as images, and here they are {med['hidden_size']} and "
            f"{width} wide: this model has no such form"
        )
    text = {**med, "encoder_hidden_size": width, "hidden_act": "gelu", "is_decoder": True, "tie_word_embeddings": True}
    text |= {"bos_token_id": words["[DEC]"], "sep_token_id": words["[SEP]"], "eos_token_id": words["[SEP]"]}
    text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "model_type": "blip_text_model"}
    vision = {
        "model_type": "blip_vision_model",
        "hidden_size": width,
        "num_hidden_layers": vit["depth"],
        "num_attention_heads": vit["num_heads"],
        "intermediate_size": int(width * vit.get("mlp_ratio", 4.0)),
        "image_size": architecture["image_size"],
        "patch_size": vit["patch_size"],
        "hidden_act": "gelu",
        "layer_norm_eps": vit.get("norm_eps", 1e-6),
    }
    features = architecture.get("embed_dim", 256)
    return _config("blip", task, text, vision) | {"image_text_hidden_size": features, "tie_word_embeddings": True}


def clip_config(sizes: Mapping) -> dict:
    """config.json of a CLIP whose sizes go by the names of its own constructor (`clip.model.Sizes`)."""
    shared = {
        "hidden_act": sizes["activation"],
        "layer_norm_eps": sizes["norm_eps"],
        "projection_dim": sizes["embed_dim"],
    }
    last = sizes["vocab_size"] - 1  # the end of text, the one before is its start
    text = shared | _tower(sizes, "transformer") | {"model_type": "clip_text_model", "vocab_size": sizes["vocab_size"]}
    text |= {"max_position_embeddings": sizes["context_length"], "bos_token_id": last - 1, "eos_token_id": last}
    vision = shared | _tower(sizes, "vision") | {"model_type": "clip_vision_model"}
    vision |= {"image_size": sizes["image_resolution"], "patch_size": sizes["vision_patch_size"]}
    return _config("clip", "retrieval_clip", text, vision) | {"projection_dim": sizes["embed_dim"]}


def preprocessor(task: str, image_size: int, mean: list[float], std: list[float]) -> dict:
    """preprocessor_config.json: images as the evaluation sees them, a square of bicubic pixels, normalised."""
    family = "CLIP" if task == "retrieval_clip" else "Blip"
    return {
        "image_processor_type": f"{family}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def write(folder: Path, config: dict, preprocessing: dict, state: dict[str, Tensor]) -> None:
    """Writes the files of a folder that the library's classes load.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    from safetensors.torch import save  # only now: nothing else here writes such a file

    content = save(state, metadata={"format": "pt"})
    with whole_file(folder / WHOLE[0], len(content)) as file:  # first, for where the disk is full the rest is no use
        file.write(content)
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    write_atomic(folder / PREPROCESSOR, json.dumps(preprocessing, indent=2) + "\n")


def _tower(sizes: Mapping, tower: str) -> dict:
    width, head_width = sizes[f"{tower}_width"], sizes[f"{tower}_head_width"]
    return {
        "hidden_size": width,
        "num_hidden_layers": sizes[f"{tower}_layers"],
        "num_attention_heads": max(1, width // head_width),
        "intermediate_size": int(width * sizes[f"{tower}_mlp_ratio"]),
    }


def _config(kind: str, task: str, text: dict, vision: dict) -> dict:
    about = {"architectures": [class_of(task)], "model_type": kind}
    return about | {"text_config": text, "vision_config": vision}

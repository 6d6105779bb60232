"""What open_clip writes beside a CLIP's weights, and the models of it that are no CLIP of ours.

Its own towers have the names of OpenAI's, and so of ours. What their shapes hide stands in open_clip_config.json.
"""

from collections.abc import Iterable
from pathlib import Path

from madtp.method.errors import UserError, excerpt
from madtp.shared.files import read_json

CONFIG = "open_clip_config.json"
WHOLE = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Parts of names that ours does not have, and what they belong to.
OTHERS = {
    "visual.trunk.": "an image tower of timm in open_clip's wrapping",
    "visual.attn_pool.": "attention pooling",
    "text.": "a text tower of its own class (SigLIP, CLIPA, CoCa or one of transformers')",
    "text_decoder.": "a text decoder (CoCa)",
    "logit_bias": "SigLIP's bias of the logits",
}
# What its configuration says besides sizes, each of which builds towers that ours is not.
OTHERWISE = ("timm_model_name", "hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs", "custom_text", "proj_bias")
OTHERWISE += ("attentional_pool", "final_ln_after_pool", "no_ln_pre", "no_causal_mask", "embed_cls", "act_kwargs")
OTHERWISE += ("norm_kwargs", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn")
OTHERWISE += ("scale_fc", "pool_type", "pos_embed_type", "proj_type", "block_type")
OPENAI = {  # but for these values, by which a tower is OpenAI's
    "vision_cfg": {"pool_type": "tok", "pos_embed_type": "learnable", "block_type": "default"},
    "text_cfg": {"pool_type": "argmax", "proj_type": "linear", "block_type": "default"},
}


def check_names(names: Iterable[str], path: object) -> None:
    """Refuses a CLIP that has parts which ours does not have.

    Raises:
        UserError: says which part it is.
    """
    names = list(names)
    for name in names if any(name.startswith("visual.") for name in names) else ():
        other = next((what for part, what in OTHERS.items() if name.startswith(part)), None)
        other = "layer scale" if name.endswith((".ls_1.gamma", ".ls_2.gamma")) else other
        if other:
            raise UserError(
                f"{path} has {other} ({name}), which CLIP's towers here do not have; use a CLIP of OpenAI's or LAION's "
                "plain ViT towers, like ViT-B/16"
            )


def architecture(folder: Path) -> dict:
    """What open_clip_config.json says of the towers beyond their shapes; nothing where there is no such file.

    Raises:
        UserError: it says something that ours cannot be.
    """
    if not (path := folder / CONFIG).is_file():
        return {}
    content = read_json(path, "take the file that belongs to the weights")
    model = content.get("model_cfg", content) if isinstance(content, dict) else {}
    vision, text = (model.get(name) if isinstance(model, dict) else None for name in ("vision_cfg", "text_cfg"))
    if not (isinstance(vision, dict) and isinstance(text, dict)):
        raise UserError(f"{path}: expected a model_cfg with vision_cfg and text_cfg; fetch the file again")
    for part, whole in {"model_cfg": model, "vision_cfg": vision, "text_cfg": text}.items():
        for name in OTHERWISE:
            if (value := whole.get(name)) and value != OPENAI.get(part, {}).get(name):
                found = f"{part} {name} {excerpt(value)}"
                raise UserError(f"{path}: {found} is not supported; use a CLIP whose towers are built like OpenAI's")
    sizes = vision.get("head_width", 64), text.get("width", 512), text.get("heads", 8)
    if not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(f"{path}: head_width, width and heads are {excerpt(sizes)}, expected integers; fetch it again")
    return {
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "head_width": sizes[0],
        "text_head_width": sizes[1] // sizes[2],
    }

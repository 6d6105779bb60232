"""Models of other libraries, small, with weights that depend on names alone, and how one asks them.

Every one sees 16 patches of 8 x 8 pixels. A case says how to build a model of a library's newest or oldest version.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import timm
import torch
import transformers
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn

from tests.golden.fill import fill, seeded

WIDTH, DEPTH, PATCHES, PATCH = 32, 3, 16, 8
SHORT = CLIPTextCfg(context_length=7, vocab_size=99, width=16, heads=2, layers=1)
WORDS = torch.randint(3, 90, (6, 7), generator=torch.Generator().manual_seed(0))


class Case(NamedTuple):
    """A model of somebody else's.

    Attributes:
        build: makes one.
        ask: what it answers to images.
        prefix: its tokens in front of the patches.
    """

    build: Callable[[], nn.Module]
    ask: Callable[[nn.Module, Tensor], Tensor]
    prefix: int = 1


def of_timm(name="vit_tiny_patch16_224", prefix=1, **arguments):
    sizes = {"img_size": 32, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 4, "num_classes": 7}
    return Case(lambda: timm.create_model(name, **sizes | arguments), lambda model, images: model(images), prefix)


def of_open_clip():
    sizes = {"layers": DEPTH, "width": WIDTH, "head_width": 8, "mlp_ratio": 2, "patch_size": PATCH, "image_size": 32}
    return Case(lambda: CLIP(WIDTH, CLIPVisionCfg(**sizes), SHORT), image_feature_of_both)


def of_open_clip_and_timm():
    """With SigLIP's tower of timm's."""
    sizes = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "none", "image_size": 224}

    def build():
        model = CustomTextCLIP(WIDTH, CLIPVisionCfg(**sizes), SHORT)
        model.visual.trunk = CASES["timm-map"].build()
        return model

    return Case(build, image_feature_of_both, 0)


def image_feature_of_both(model, images):
    return model(images, WORDS[: len(images)])[0]


TOWER = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "image_size": 32}
TOWER |= {"intermediate_size": 64, "patch_size": PATCH}
TEXT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 99,
}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BLIP = {"text_config": {**TEXT, "encoder_hidden_size": WIDTH, "sep_token_id": 2}, "image_text_hidden_size": 16}
BLIP |= {"vision_config": TOWER, "projection_dim": 16}


def of_transformers(name, config, read, sizes=TOWER, prefix=1):
    def build():
        if not hasattr(transformers, name):
            pytest.skip(f"transformers {transformers.__version__} has no {name}")
        return getattr(transformers, name)(getattr(transformers, config)(**sizes))

    return Case(build, read, prefix)


def image_feature(model, images):
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # in which old versions of transformers forget to make CLIP's causal mask
    try:
        return model(input_ids=WORDS[: len(images)], pixel_values=images).image_embeds
    finally:
        torch.set_default_dtype(usual)


def states(model, images):
    return model(images).last_hidden_state


def logits(model, images):
    return model(images).logits


def caption_logits(model, images):
    return model(images, WORDS[: len(images)]).logits


def question_states(model, images):
    """What the answer decoder attends to; the model itself says no more than the mean of its losses."""
    words, seen = WORDS[: len(images)], []
    hook = model.text_encoder.register_forward_hook(lambda module, given, output: seen.append(output[0]))
    model(words, images, labels=words)
    hook.remove()
    return seen[0]


def match(model, images):
    return model(WORDS[: len(images)], images).itm_score


def similarities(model, images):
    return model(WORDS[: len(images)], images, use_itm_head=False).itm_score.diagonal()


CONTRASTIVE = {"vision_config": TOWER, "text_config": TEXT}
CASES = {
    "timm": of_timm(),
    "timm-average": of_timm(global_pool="avg"),
    "timm-average-no-class": of_timm(prefix=0, global_pool="avg", class_token=False),
    "timm-registers": of_timm(prefix=5, reg_tokens=4, init_values=0.5, no_embed_class=True, qk_norm=True),
    "timm-map": of_timm(prefix=0, global_pool="map", class_token=False, num_classes=0),
    "timm-deit": of_timm("deit_tiny_distilled_patch16_224", prefix=2),
    "timm-eva": of_timm("eva_giant_patch14_224"),
    "open_clip": of_open_clip(),
    "open_clip-timm": of_open_clip_and_timm(),
    "CLIPModel": of_transformers("CLIPModel", "CLIPConfig", image_feature, CONTRASTIVE | {"projection_dim": 16}),
    "SiglipModel": of_transformers("SiglipModel", "SiglipConfig", image_feature, CONTRASTIVE, prefix=0),
    "ViTModel": of_transformers("ViTModel", "ViTConfig", states),
    "ViTForImageClassification": of_transformers("ViTForImageClassification", "ViTConfig", logits),
    "Dinov2Model": of_transformers("Dinov2Model", "Dinov2Config", states, TOWER | {"mlp_ratio": 2}),
    "Dinov2ForImageClassification": of_transformers(
        "Dinov2ForImageClassification", "Dinov2Config", logits, TOWER | {"use_swiglu_ffn": True}
    ),
    "Dinov2WithRegistersModel": of_transformers(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", states, TOWER | {"mlp_ratio": 2}, prefix=5
    ),
    "BlipForConditionalGeneration": of_transformers("BlipForConditionalGeneration", "BlipConfig", caption_logits, BLIP),
    "BlipForQuestionAnswering": of_transformers("BlipForQuestionAnswering", "BlipConfig", question_states, BLIP),
    "BlipForImageTextRetrieval": of_transformers("BlipForImageTextRetrieval", "BlipConfig", match, BLIP),
    "BlipForImageTextRetrieval-features": of_transformers(
        "BlipForImageTextRetrieval", "BlipConfig", similarities, BLIP
    ),
}


def make(name: str) -> nn.Module:
    """A model of a case, in float64."""
    return fill(CASES[name].build(), gain=1.0).eval().double()


def close(name: str) -> dict[str, float]:
    """Within what the answers of a case are equal; SigLIP of transformers 4 takes its softmax in single precision."""
    rough = name.startswith("Siglip") and transformers.__version__.startswith("4.")
    return {"rtol": 1e-5, "atol": 1e-6} if rough else {"rtol": 1e-9, "atol": 1e-9}


def noise(number: int = 6, seed: int = 1) -> Tensor:
    """Images [number, 3, 32, 32]."""
    return seeded(seed, number, 3, 32, 32).double()


def repeated(number: int = 6) -> Tensor:
    """Images in which each of four patches stands four times: [number, 3, 32, 32]."""
    tiles = seeded(3, number, 3, 4, PATCH, PATCH).double().repeat_interleave(4, dim=2)
    order = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(1))
    return tiles[:, :, order].unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(-1, 3, 32, 32).contiguous()


@torch.no_grad()
def without_positions(model: nn.Module) -> nn.Module:
    """Patches that look alike are alike."""
    for name, weight in model.named_parameters():
        if "pos" in name and "text" not in name and weight.dim() > 1 and weight.shape[-1] == WIDTH:
            weight.zero_()
    return model

"""transformers' CLIP, SigLIP, ViT, DINOv2 (with registers too) and BLIP, alone or with heads; texts stay whole.

BLIP's texts attend to the image's tokens. They are given the merged ones, each with the logarithm of its size in a
channel more, and add it to the logits: a token of several patches weighs as much as they did.

Shapes: B batch, L tokens, D width.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from madtp.method.errors import UserError
from madtp.shared.library.adapted import Adapted, unit
from madtp.shared.library.layer import Layer, Names, part
from madtp.shared.library.refusal import refusal
from madtp.shared.library.tower import UNHEARD, Replacement, Tower


def _projections(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}" for name in names)


_CLIP = Names(
    norm="layer_norm1",
    query_key_value=_projections("self_attn", "q_proj", "k_proj", "v_proj"),
    heads="self_attn.num_heads",
    output=("self_attn.out_proj",),
    second_norm="layer_norm2",
    feed_forward=("mlp",),
    dropout="self_attn.dropout",
)
_BLIP = Names(
    norm="layer_norm1",
    query_key_value=("self_attn.qkv",),
    heads="self_attn.num_heads",
    output=("self_attn.projection",),
    second_norm="layer_norm2",
    feed_forward=("mlp",),
    dropout="self_attn.dropout",
)
_VIT = Names(
    norm="layernorm_before",
    query_key_value=_projections("attention", "q_proj", "k_proj", "v_proj"),
    heads="attention.num_attention_heads",
    output=("attention.o_proj", "dropout?"),
    second_norm="layernorm_after",
    feed_forward=("mlp", "dropout?"),
    dropout="attention.attention_dropout",
)
_VIT_ONCE = Names(
    norm="layernorm_before",
    query_key_value=_projections("attention.attention", "query", "key", "value"),
    heads="attention.attention.num_attention_heads",
    output=("attention.output.dense", "attention.output.dropout?"),
    second_norm="layernorm_after",
    feed_forward=("intermediate", "output.dense", "output.dropout?"),
    dropout="attention.attention.dropout",
)
_DINO = Names(
    norm="norm1",
    query_key_value=_projections("attention", "q_proj", "k_proj", "v_proj"),
    heads="attention.num_attention_heads",
    output=("attention.o_proj", "layer_scale1", "drop_path?"),
    second_norm="norm2",
    feed_forward=("mlp", "layer_scale2", "drop_path?"),
    dropout="attention.attention_dropout",
)
_DINO_ONCE = Names(
    norm="norm1",
    query_key_value=_projections("attention.attention", "query", "key", "value"),
    heads="attention.attention.num_attention_heads",
    output=("attention.output.dense", "attention.output.dropout?", "layer_scale1", "drop_path?"),
    second_norm="norm2",
    feed_forward=("mlp", "layer_scale2", "drop_path?"),
    dropout="attention.attention.dropout",
)
NAMES = {  # of each kind of layer, as it is in one version of the library or another
    "CLIPEncoderLayer": (_CLIP,),
    "SiglipEncoderLayer": (_CLIP,),
    "BlipEncoderLayer": (_BLIP,),
    "ViTLayer": (_VIT, _VIT_ONCE),
    "Dinov2Layer": (_DINO, _DINO_ONCE),
    "Dinov2WithRegistersLayer": (_DINO, _DINO_ONCE),
}
CROSSED = ("BlipForConditionalGeneration", "BlipForQuestionAnswering", "BlipForImageTextRetrieval")


def adapt(model: nn.Module) -> Adapted | None:
    """A model of transformers'; None for a model of another library."""
    if not any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__):
        return None
    vision = next((module for module in model.modules() if patches_of(module) is not None), model)
    crossed = type(model).__name__ in CROSSED
    adapted = Adapted(tower(model, vision, crossed), lambda images: answer(model, vision, images))
    if crossed:
        texts = model.text_decoder if hasattr(model, "text_decoder") else None
        texts = model.text_encoder if hasattr(model, "text_encoder") else texts  # VQA's decoder reads the question
        adapted.others = [(vision.post_layernorm, NormOfSized(vision.post_layernorm))]
        adapted.others += [
            (attention.self, CrossAttention(attention.self))
            for name, attention in texts.named_modules()
            if name.endswith("crossattention")
        ]
        if hasattr(model, "vision_proj"):
            adapted.others.append((model.vision_proj, WithoutSize(model.vision_proj)))
    return adapted


def patches_of(module: nn.Module) -> nn.Conv2d | None:
    """The convolution that makes tokens of patches, of a module that runs a tower."""
    for name in ("embeddings.patch_embedding", "embeddings.patch_embeddings.projection"):
        found = part(module, name)
        if isinstance(found, nn.Conv2d) and (hasattr(module, "encoder") or hasattr(module, "layers")):
            return found
    return None


def tower(model: nn.Module, vision: nn.Module, shortened: bool) -> Tower:
    """The image tower of a model.

    Raises:
        UserError: it cannot be pruned, and why.
    """
    encoder = getattr(vision, "encoder", None)
    blocks = next((found for name in ("layers", "layer") if (found := getattr(encoder or vision, name, None))), ())
    kinds = {type(block).__name__ for block in blocks}
    fitting = [names for names in NAMES.get(kinds.pop(), ()) if names.fit(blocks[0])] if len(kinds) == 1 else []
    if not fitting:
        raise refusal(model)
    if any(getattr(model.config, name, False) for name in UNHEARD):
        raise UserError(f"a pruned tower has neither hidden states nor attentions to give: set {UNHEARD} to False")
    prefix = 0 if type(blocks[0]).__name__.startswith("Siglip") else 1
    return Tower(
        entry=encoder or blocks[0],
        passed=[] if encoder else list(blocks[1:]),
        layers=[Layer(block, fitting[0]) for block in blocks],
        patches=patches_of(vision),
        prefix=prefix + getattr(vision.config, "num_register_tokens", 0),
        class_token=prefix > 0,
        wrap=as_output if encoder else None,
        shortened=shortened,
    )


def as_output(x: Tensor) -> Any:
    """Tokens as an encoder gives them."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=x)


def answer(model: nn.Module, vision: nn.Module, images: Tensor) -> Tensor:
    """Probabilities of a classifier, CLIP's and SigLIP's feature; else of the tower what its head or others read."""
    if hasattr(model, "get_image_features"):
        output = model.get_image_features(pixel_values=images)
        return unit(output if isinstance(output, Tensor) else output.pooler_output)
    output = (vision if type(model).__name__ in CROSSED else model)(pixel_values=images)
    if getattr(output, "logits", None) is not None:
        return output.logits.float().softmax(dim=-1)
    if getattr(output, "image_embeds", None) is not None:
        return unit(output.image_embeds)
    states = output.last_hidden_state
    if type(model).__name__ in CROSSED:
        return torch.cat([unit(states[:, 0, :-1]), unit(mean_of_patches(*split(states)))], dim=1)
    return unit(states[:, 0] if output.get("pooler_output") is None else output.pooler_output)


def split(states: Tensor) -> tuple[Tensor, Tensor]:
    """Sized tokens [B, L, D + 1] as the tokens [B, L, D] and the logarithms of their sizes [B, L]."""
    return states[..., :-1], states[..., -1]


def mean_of_patches(states: Tensor, log_sizes: Tensor) -> Tensor:
    """The mean over what tokens stand for: [B, L, D] and [B, L] -> [B, D]."""
    return (log_sizes.softmax(dim=1).unsqueeze(2) * states).sum(dim=1)


class Sized(Replacement):
    """A forward that must know that tokens come with a channel more.

    Args:
        module: whose own forward does the rest.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def own(self, *given: Any, **named: Any) -> Any:
        """The forward that the module has of its class."""
        return type(self.module).forward(self.module, *given, **named)


class NormOfSized(Sized):
    """Norms tokens [B, L, D + 1] and leaves their sizes; of a class token alone, [B, D + 1], D is left."""

    def __call__(self, x: Tensor) -> Tensor:
        normed = self.own(x[..., :-1])
        return normed if x.dim() == 2 else torch.cat([normed, x[..., -1:].to(normed.dtype)], dim=2)


class WithoutSize(Sized):
    """Reads a token without its size: [B, D + 1]."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.own(x[..., :-1])


class CrossAttention(Sized):
    """Attends to tokens [B, L, D + 1] as often as they have patches."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.names = tuple(signature(type(module).forward).parameters)[2:]  # in the order of this version

    def __call__(self, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        named |= dict(zip(self.names, given, strict=False))
        states, log_sizes = split(named["encoder_hidden_states"])
        mask, bias = named.get("encoder_attention_mask"), log_sizes[:, None, None, :]
        named["encoder_hidden_states"] = states
        named["encoder_attention_mask"] = bias if mask is None else bias + mask.to(bias)
        return self.own(hidden_states, **named)

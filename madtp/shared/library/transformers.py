"""transformers' CLIP, SigLIP, ViT, DINOv2 (with registers too) and BLIP, alone or with heads, and SigLIP's texts.

BLIP's texts attend to the image's tokens. They are given the merged ones, each with the logarithm of its size in a
channel more, and add it to the logits: a token of several patches weighs as much as they did.

Shapes: B batch, L tokens, D width.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from madtp.method.errors import UserError
from madtp.shared.library.adapted import Adapted, decided, unit
from madtp.shared.library.layer import Names, part
from madtp.shared.library.refusal import causal, refusal
from madtp.shared.library.replacement import TEXT, Place, Replacement
from madtp.shared.library.tower import UNHEARD, Tower


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
WORDS = {"input_ids", "decoder_input_ids"}
CROSSED = ("BlipForConditionalGeneration", "BlipForQuestionAnswering", "BlipForImageTextRetrieval")


def adapt(model: nn.Module, name: str) -> Adapted | None:
    """A model of transformers'; None for a model of another library."""
    if not any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__):
        return None
    if name == TEXT:
        text = text_of(model)
        return Adapted(text_tower(model, text), lambda words: feature(model, "text", input_ids=words))
    vision = next((module for module in model.modules() if patches_of(module) is not None), model)
    crossed = type(model).__name__ in CROSSED
    if not crossed and reads_words(model, vision):
        place = next(place for place, module in model.named_modules() if module is vision)
        raise refusal(
            model, f"reads more than images; prune its image tower by itself: madtp.prune(model.{place}, ...)"
        )
    others = crossing(model, vision) if crossed else []
    return Adapted(image_tower(model, vision, crossed), lambda images: answer(model, vision, images), others)


def reads_words(model: nn.Module, vision: nn.Module) -> bool:
    """Whether nothing can be asked of a model with images alone, since it is more than its image tower."""
    asks_for_words = not WORDS.isdisjoint(signature(model.forward).parameters)
    return model is not vision and asks_for_words and not hasattr(model, "get_image_features")


def crossing(model: nn.Module, vision: nn.Module) -> list[Place]:
    """What of BLIP must know of the sizes of tokens."""
    texts = model.text_encoder if hasattr(model, "text_encoder") else model.text_decoder  # VQA's reads the question
    forwards = [(vision.post_layernorm, NormOfSized)]
    named = texts.named_modules()
    forwards += [(module.self, CrossAttention) for name, module in named if name.endswith("crossattention")]
    if hasattr(model, "vision_proj"):
        forwards.append((model.vision_proj, WithoutSize))
    return [Place(module, "forward", forward(module)) for module, forward in forwards]


def patches_of(module: nn.Module) -> nn.Conv2d | None:
    """The convolution that makes tokens of patches, of a module that runs a tower."""
    for name in ("embeddings.patch_embedding", "embeddings.patch_embeddings.projection"):
        found = part(module, name)
        if isinstance(found, nn.Conv2d) and (hasattr(module, "encoder") or hasattr(module, "layers")):
            return found
    return None


def image_tower(model: nn.Module, vision: nn.Module, shortened: bool) -> Tower:
    """The image tower of a model.

    Raises:
        UserError: it cannot be pruned, and why.
    """
    blocks = blocks_of(vision)
    names = names_of(blocks)
    if names is None:
        raise refusal(model)
    prefix = 0 if type(blocks[0]).__name__.startswith("Siglip") else 1
    prefix += getattr(vision.config, "num_register_tokens", 0)
    return tower(
        vision, names, embedding=patches_of(vision), prefix=prefix, class_token=prefix > 0, shortened=shortened
    )


def text_of(model: nn.Module) -> nn.Module | None:
    """The module that runs a text tower, if there is one."""
    found = (module for module in model.modules() if part(module, "embeddings.token_embedding") is not None)
    return next(found, None)


def text_tower(model: nn.Module, text: nn.Module | None) -> Tower:
    """The text tower of SigLIP, which reads its last token.

    Raises:
        UserError: it cannot be pruned, and why.
    """
    kinds = {type(block).__name__ for block in blocks_of(text)}
    if kinds == {"CLIPEncoderLayer"}:
        raise causal(model)
    if kinds != {"SiglipEncoderLayer"}:
        raise refusal(model, "has no text tower that is known here")
    words = text.embeddings.token_embedding
    return tower(text, names_of(blocks_of(text)), embedding=words, prefix=1, class_token=True, last=True, name=TEXT)


def blocks_of(module: nn.Module | None) -> Any:
    """The layers that a module runs, itself or by an encoder."""
    places = ("encoder.layers", "encoder.layer", "layers", "layer")
    return next((found for place in places if (found := part(module, place))), ())


def names_of(blocks: Any) -> Names | None:
    """Where the parts of layers are, if they are of one kind that is known."""
    kinds = {type(block).__name__ for block in blocks}
    known = NAMES.get(kinds.pop(), ()) if len(kinds) == 1 else ()
    return next((names for names in known if names.fit(blocks[0])), None)


def tower(module: nn.Module, names: Names, **known: Any) -> Tower:
    """What runs the layers, as a tower.

    Raises:
        UserError: the model's configuration asks for what a pruned tower does not give.
    """
    encoder, blocks = getattr(module, "encoder", None), blocks_of(module)
    if any(getattr(module.config, name, False) for name in UNHEARD):
        raise UserError(
            f"a pruned tower has no hidden states of its layers and no attentions: set {UNHEARD[:2]} to False"
        )
    return Tower(
        entry=encoder or blocks[0],
        blocks=blocks,
        names=names,
        wrap=as_output if encoder else None,
        config=module.config,
        **known,
    )


def as_output(x: Tensor) -> Any:
    """Tokens as an encoder gives them."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=x)


def answer(model: nn.Module, vision: nn.Module, images: Tensor) -> Tensor:
    """Probabilities of a classifier, CLIP's and SigLIP's feature; else of the tower what its head or others read.

    Other heads, as that which paints masked patches, are left aside.
    """
    if hasattr(model, "get_image_features"):
        return feature(model, "image", pixel_values=images)
    output = (vision if type(model).__name__ in CROSSED else model)(pixel_values=images)
    if getattr(output, "logits", None) is not None:
        return decided(output.logits)
    if getattr(output, "image_embeds", None) is not None:
        return unit(output.image_embeds)
    output = output if hasattr(output, "last_hidden_state") else vision(pixel_values=images)
    states = output.last_hidden_state
    if type(model).__name__ in CROSSED:
        return torch.cat([unit(states[:, 0, :-1]), unit(mean_of_patches(*split(states)))], dim=1)
    return unit(states[:, 0] if output.get("pooler_output") is None else output.pooler_output)


def feature(model: nn.Module, kind: str, **asked: Tensor) -> Tensor:
    """CLIP's and SigLIP's feature of images or texts, or that of a tower of theirs alone."""
    output = getattr(model, f"get_{kind}_features", model)(**asked)
    return unit(output if isinstance(output, Tensor) else output.pooler_output)


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

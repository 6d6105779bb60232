"""CLIP, whose two towers prune their tokens in every layer (Radford et al., 2021).

Shapes: B batch, L tokens, N = L - 1 prunable ones behind the first (image: class token, text: start of text), D width,
H heads, E = D / H, F width of the features, K tokens learned, C their width.
"""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.cost.flops import TextShape, VisionShape
from madtp.cost.trace import Trace
from madtp.method.alignment import QueryModel
from madtp.method.attention import AttentionScores
from madtp.method.keep import Keep, for_texts, keep_batch
from madtp.method.layout import Rectangle
from madtp.method.pruning import Kept
from madtp.shared.layers import Guidance, run_layers
from madtp.shared.recompute import through
from transform.pictures import normalised

TEXT_TOWER = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection")


@dataclass(frozen=True)
class Sizes:
    """What a CLIP with vision transformer is built from, by the names of CLIP's own constructor.

    What that does not have is equal in all of OpenAI's. It may differ in others, and no shape tells the last four.
    """

    embed_dim: int
    image_resolution: int
    vision_layers: int
    vision_width: int
    vision_patch_size: int
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_layers: int
    vision_mlp_ratio: float = 4.0
    transformer_mlp_ratio: float = 4.0
    activation: str = "quick_gelu"
    vision_head_width: int = 64
    transformer_head_width: int = 64
    norm_eps: float = 1e-5


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class LayerSizes(NamedTuple):
    """What every layer of a tower is built from: D, the hidden width of the MLP, H, and what no shape tells."""

    width: int
    hidden: int
    num_heads: int
    activation: str
    norm_eps: float

    @classmethod
    def of(cls, sizes: Sizes, tower: str) -> "LayerSizes":
        """Of a tower, `vision` or `transformer`."""
        width, ratio, head_width = (getattr(sizes, f"{tower}_{name}") for name in ("width", "mlp_ratio", "head_width"))
        return cls(width, int(width * ratio), max(1, width // head_width), sizes.activation, sizes.norm_eps)


class Attention(nn.Module):
    """Multi-head self-attention that can also report the scores of its tokens.

    Fidelity: query, key and value share the tensors `in_proj_*`, since CLIP's checkpoints name them so.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, norm: nn.Module, layout: Rectangle, causal: bool, scores: bool
    ) -> tuple[Tensor, AttentionScores | None]:
        projected = through(x, norm, self.in_proj)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, L, E]
        output, attention_scores = layout.attend(query, key, value, causal=causal, scores=scores)
        return self.out_proj(output.transpose(1, 2).flatten(2)), attention_scores

    def in_proj(self, x: Tensor) -> Tensor:
        """Query, key and value side by side, [B, L, 3D]."""
        return F.linear(x, self.in_proj_weight, self.in_proj_bias)


class Block(nn.Module):
    """Pre-norm transformer layer: attend, prune, feed forward."""

    def __init__(self, layer: LayerSizes, sd_dim: int):
        super().__init__()
        width, hidden = layer.width, layer.hidden
        self.ln_1 = nn.LayerNorm(width, layer.norm_eps)
        self.attn = Attention(width, layer.num_heads)
        self.query_model = QueryModel(width, sd_dim, always_map=True)
        self.ln_2 = nn.LayerNorm(width, layer.norm_eps)
        activation = ACTIVATIONS[layer.activation]()
        layers = {"c_fc": nn.Linear(width, hidden), "gelu": activation, "c_proj": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(
        self,
        x: Tensor,
        layout: Rectangle,
        guidance: Guidance,
        end: Tensor | None,
        min_keep: int | Tensor,
    ) -> tuple[Tensor, Rectangle, Tensor | None, Kept | None]:
        protected = None if end is None else end.unsqueeze(1) - 1  # counted without the first token
        alignment, aligned = self.query_model(x, layout, *guidance)
        attended, scores = self.attn(x, self.ln_1, layout, end is not None, guidance.prunes)
        x, layout, kept = layout.prune(x + attended, scores, alignment, guidance.temperature, min_keep, protected)
        hidden = through(x, self.ln_2, self.mlp.c_fc)
        return x + through(hidden, self.mlp.gelu, self.mlp.c_proj), layout, aligned, kept


class Transformer(nn.Module):
    """The layers of a tower.

    Args:
        tower: its name in a trace.
        layer: what every layer is built from.
        depth: number of layers.
        sd_dim: C.
        checkpointed_layers: how many of the last layers are recomputed in the backward pass to save memory.
    """

    def __init__(self, tower: str, layer: LayerSizes, depth: int, sd_dim: int, checkpointed_layers: int = 0):
        super().__init__()
        self.tower, self.width = tower, layer.width
        self.checkpointed_layers = checkpointed_layers
        self.resblocks = nn.ModuleList(Block(layer, sd_dim) for _ in range(depth))

    def forward(
        self,
        x: Tensor,
        guidance: Guidance,
        trace: Trace | None,
        keep: Keep,
        end: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the layers and returns the token that the feature is read from.

        Args:
            x: [B, L, D].
            guidance: what the layers prune by.
            trace: where to write down what each layer did to its tokens.
            keep: the rule by which tokens are kept.
            end: [B], where the end-of-text token stands. Then attention is causal, this token is never dropped, and
                no layer keeps fewer tokens than this position + 3 (by the rule `batch`, the largest of these): mostly
                padding goes.

        Returns:
            The class token or, of a text, the end-of-text token [B, D]; and the aligned feature [B, K, C] summed over
            the layers, or None.
        """
        sequences = (keep if guidance.prunes else keep_batch)(x, None, guidance.align)
        min_keep = 2 if end is None or not guidance.prunes else sequences.layout.in_company(end) + 3
        (x, layout), aligned, (end,), _ = run_layers(
            self.resblocks,
            sequences,
            guidance,
            self.tower,
            trace,
            self.checkpointed_layers,
            along=(end,),
            inputs=repeat((min_keep,)),
        )
        return layout.first(x) if end is None else layout.at(x, end), aligned


class VisionTransformer(nn.Module):
    """CLIP's image tower."""

    def __init__(self, sizes: Sizes, sd_dim: int, checkpointed_layers: int = 0):
        super().__init__()
        width, patch_size, depth = sizes.vision_width, sizes.vision_patch_size, sizes.vision_layers
        self.shape = VisionShape(sizes.image_resolution, patch_size, width, depth, sizes.vision_mlp_ratio, sd_dim)
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(self.shape.length, width))
        self.ln_pre = nn.LayerNorm(width, sizes.norm_eps)
        self.transformer = Transformer("image", LayerSizes.of(sizes, "vision"), depth, sd_dim, checkpointed_layers)
        self.ln_post = nn.LayerNorm(width, sizes.norm_eps)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, sizes.embed_dim))

    def forward(
        self,
        image: Tensor,
        space_dict: Tensor | None = None,
        temperature: float = 0.0,
        align: bool = True,
        trace: Trace | None = None,
        keep: Keep = keep_batch,
    ) -> tuple[Tensor, Tensor | None]:
        """Features [B, F] of images [B, 3, S, S], and the aligned feature [B, K, C] or None; see `Transformer`."""
        x = self.conv1(normalised(image)).flatten(2).transpose(1, 2)  # [B, N, D]
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        first, aligned = self.transformer(self.ln_pre(x), Guidance.by(space_dict, temperature, align), trace, keep)
        return self.ln_post(first) @ self.proj, aligned


class CLIP(nn.Module):
    """An image tower and a text tower whose features are compared, and the learnable tokens that guide their pruning.

    Args:
        sizes: of the towers.
        sd_num: K.
        sd_dim: C.
        checkpointed_layers: how many of the last layers of either tower are recomputed in the backward pass.
        keep: the rule by which both towers keep tokens.
    """

    def __init__(self, sizes: Sizes, sd_num: int, sd_dim: int, checkpointed_layers: int = 0, keep: Keep = keep_batch):
        super().__init__()
        self.sizes, self.keep = sizes, keep
        width, depth = sizes.transformer_width, sizes.transformer_layers
        layer = LayerSizes.of(sizes, "transformer")
        self.text_shape = TextShape(width, depth, layer.hidden, vocabulary=sizes.vocab_size, sd_dim=sd_dim)
        self.visual = VisionTransformer(sizes, sd_dim, checkpointed_layers)
        self.transformer = Transformer("text", layer, depth, sd_dim, checkpointed_layers)
        self.token_embedding = nn.Embedding(sizes.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(sizes.context_length, width))
        self.ln_final = nn.LayerNorm(width, sizes.norm_eps)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, sizes.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.space_dict = nn.Parameter(torch.randn(sd_num, sd_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for transformer in (self.visual.transformer, self.transformer):
            _initialise(transformer)

    @property
    def image_tower(self) -> nn.Module:
        """What reads images."""
        return self.visual

    @property
    def num_learnable(self) -> int:
        """K."""
        return len(self.space_dict)

    @property
    def architecture(self) -> dict:
        """What a checkpoint has to say of the model, see `madtp.shared.weights.architecture`."""
        sizes = self.sizes
        return {
            "image_size": sizes.image_resolution,
            "activation": sizes.activation,
            "head_width": sizes.vision_head_width,
            "text_head_width": sizes.transformer_head_width,
            "norm_eps": sizes.norm_eps,
        }

    def encode_image(self, image: Tensor, temperature: float = 0.0, trace: Trace | None = None) -> Tensor:
        """Features [B, F] of images [B, 3, S, S], not normalised."""
        return self.visual(image, self.space_dict, temperature, align=False, trace=trace, keep=self.keep)[0]

    def encode_text(self, text: Tensor, temperature: float = 0.0, trace: Trace | None = None) -> Tensor:
        """Features [B, F] of token ids [B, L], not normalised."""
        return self.read_text(text, temperature, align=False, trace=trace)[0]

    def read_text(
        self, text: Tensor, temperature: float, align: bool, trace: Trace | None = None, twin: str = ""
    ) -> tuple[Tensor, Tensor | None]:
        """Features [B, F], read at the end-of-text token, and the aligned feature [B, K, C] or None.

        Args:
            text: [B, L], token ids.
            temperature: pruning temperature; 0 is the dense model.
            align: whether the aligned feature of the similarity loss is wanted.
            trace: where to write down what each layer did to its tokens.
            twin: ending of the names of the tower's parts, when it is another than the model's own.
        """
        transformer, embedding, positions, norm, projection = (getattr(self, name + twin) for name in TEXT_TOWER)
        end = text.argmax(dim=-1)  # the end of text has the largest id
        x = embedding(text) + positions[: text.shape[1]]
        keep, temperature = for_texts(self.keep, temperature)
        last, aligned = transformer(x, Guidance.by(self.space_dict, temperature, align), trace, keep, end)
        return norm(last) @ projection, aligned


@torch.no_grad()
def _initialise(transformer: Transformer) -> None:
    """Draws a tower's weights as CLIP does: by width, and smaller in a deep tower where layers add to the residual."""
    width, depth = transformer.width, len(transformer.resblocks)
    residual = width**-0.5 * (2 * depth) ** -0.5
    for block in transformer.resblocks:
        nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(block.attn.out_proj.weight, std=residual)
        nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.c_proj.weight, std=residual)
        for linear in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
            nn.init.zeros_(linear.bias)

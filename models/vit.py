"""Vision transformer whose layers prune their tokens (Dosovitskiy et al., 2021).

Shapes: B batch, L tokens with the class token first, N = L - 1, D width, H heads, E = D / H, K tokens learned, C wide.
"""

import torch
from timm.layers import DropPath, Mlp, PatchEmbed, trunc_normal_
from torch import Tensor, nn

from madtp.cost.flops import VisionShape
from madtp.cost.trace import Trace
from madtp.method.alignment import QueryModel
from madtp.method.attention import AttentionScores
from madtp.method.keep import Keep, keep_batch
from madtp.method.layout import Rectangle, Sequences
from madtp.method.pruning import Kept
from madtp.shared.layers import Guidance, run_layers
from madtp.shared.recompute import through
from transform.pictures import normalised


class Attention(nn.Module):
    """Multi-head self-attention that can also report the scores of its tokens."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, norm: nn.Module, layout: Rectangle, scores: bool
    ) -> tuple[Tensor, AttentionScores | None]:
        projected = through(x, norm, self.qkv)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, L, E]
        output, attention_scores = layout.attend(query, key, value, scores=scores)
        return self.proj(output.transpose(1, 2).flatten(2)), attention_scores


class Block(nn.Module):
    """Pre-norm transformer layer: attend, prune, feed forward."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, norm_eps: float, sd_dim: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, num_heads)
        self.query_model = QueryModel(width, sd_dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(
        self, x: Tensor, layout: Rectangle, guidance: Guidance
    ) -> tuple[Tensor, Rectangle, Tensor | None, Kept | None]:
        alignment, aligned = self.query_model(x, layout, *guidance)
        attended, scores = self.attn(x, self.norm1, layout, guidance.prunes)
        x, layout, kept = layout.prune(x + self.drop_path(attended), scores, alignment, guidance.temperature)
        hidden = through(x, self.norm2, self.mlp.fc1)
        return x + self.drop_path(through(hidden, self.mlp.act, self.mlp.fc2)), layout, aligned, kept


class VisionTransformer(nn.Module):
    """BLIP's image encoder with pruning in every layer.

    Args:
        img_size: pixels on a side.
        patch_size: pixels on a side of a patch.
        embed_dim: D.
        depth: number of layers.
        num_heads: H.
        sd_dim: C, width of the learnable tokens; a layer maps its tokens to it where D differs.
        mlp_ratio: hidden width of the MLP over D.
        drop_path_rate: stochastic depth of the last layer, growing linearly from 0 at the first.
        checkpointed_layers: how many of the last layers are recomputed in the backward pass to save memory.
        norm_eps: of all norms.
    """

    def __init__(
        self,
        img_size: int = 384,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        sd_dim: int = 768,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        checkpointed_layers: int = 0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        self.shape = VisionShape(img_size, patch_size, embed_dim, depth, mlp_ratio, sd_dim)
        self.embed_dim = embed_dim
        self.checkpointed_layers = checkpointed_layers
        self.patch_embed = PatchEmbed(img_size, patch_size, embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, embed_dim))
        drop_path = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        layer = (embed_dim, num_heads, mlp_ratio, norm_eps, sd_dim)
        self.blocks = nn.ModuleList(Block(*layer, rate) for rate in drop_path)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        self.apply(_initialise)

    def forward(
        self,
        image: Tensor,
        space_dict: Tensor | None = None,
        temperature: float = 0.0,
        align: bool = True,
        trace: Trace | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Encodes images.

        Args:
            image: [B, 3, img_size, img_size], normalised, or as it comes from a picture: uint8.
            space_dict: [K, C], the learnable tokens; without them nothing is pruned or aligned.
            temperature: pruning temperature; 0 is the dense model.
            align: whether the aligned feature of the similarity loss is wanted.
            trace: where to write down what each layer did to its tokens.

        Returns:
            Normed tokens [B, L', D], class token first, kept tokens in image order, merged token last; and the aligned
            feature [B, K, C] summed over the layers, or None.
        """
        states, aligned = self.encode(image, Guidance.by(space_dict, temperature, align), trace)
        return states.tokens, aligned

    def encode(
        self, image: Tensor, guidance: Guidance, trace: Trace | None = None, keep: Keep = keep_batch, together: int = 1
    ) -> tuple[Sequences, Tensor | None]:
        """As `forward`, by any rule of keeping: the tokens may be masked or packed, and come with their layout.

        Of a sample with several images, B / together apart, each keeps equally many tokens.
        """
        x = self.patch_embed(normalised(image))  # [B, N, D]
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        sequences = (keep if guidance.prunes else keep_batch)(x, None, guidance.align, together)
        passed = run_layers(self.blocks, sequences, guidance, "image", trace, self.checkpointed_layers)
        x, layout = passed.sequences
        return Sequences(self.norm(x), layout), passed.aligned


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

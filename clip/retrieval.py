"""CLIP fine-tuned for image-text retrieval: contrastive loss with momentum towers, a queue and soft targets.

Shapes: B samples, L text tokens, F width of the features.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.model import CLIP, TEXT_TOWER, Sizes
from clip.tokenizer import tokenize, words
from madtp.cost.trace import Trace
from madtp.method.keep import Keep, keep_batch
from madtp.shared.momentum import MomentumContrast, Views

LARGEST_SCALE = math.log(100)  # of similarities, as CLIP was trained


class ClipRetrieval(MomentumContrast, CLIP):
    """CLIP with what it is fine-tuned by.

    Args:
        sizes: of the towers.
        sd_num: K.
        sd_dim: C.
        queue_size: features of earlier batches to compare with.
        checkpointed_layers: how many of the last layers of either tower are recomputed in the backward pass.
        keep: the rule by which all towers keep tokens.
    """

    momentum_towers = ("visual", *TEXT_TOWER)

    def __init__(
        self,
        sizes: Sizes,
        sd_num: int,
        sd_dim: int,
        queue_size: int,
        checkpointed_layers: int = 0,
        keep: Keep = keep_batch,
    ):
        super().__init__(sizes, sd_num, sd_dim, checkpointed_layers, keep)
        self.init_momentum(sizes.embed_dim, queue_size)

    def bounded_scale(self) -> Tensor:
        with torch.no_grad():
            self.logit_scale.clamp_(0, LARGEST_SCALE)
        return self.logit_scale.exp()

    @property
    def most_tokens(self) -> int:
        """What the position embedding of the text tower allows."""
        return self.sizes.context_length

    @property
    def text_limits(self) -> dict[str, int]:
        """After how many tokens a caption is cut."""
        return {"caption": self.most_tokens}

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens texts have before they are cut, the start of text included."""
        return [1 + len(words(text)) for text in texts]

    def encode_captions(self, captions: Sequence[str] | Tensor) -> Tensor:
        """Token ids [B, L] on the model's device, long texts cut; what is token ids already stays as it is."""
        if isinstance(captions, Tensor):
            return captions
        text = tokenize(captions, self.most_tokens, truncate=True)
        return text.to(self.space_dict.device, non_blocking=True)

    def views(
        self, image: Tensor, text: Tensor, temperature: float, trace: Trace | None = None, twin: str = ""
    ) -> Views:
        visual, align = getattr(self, f"visual{twin}"), temperature > 0
        image_feat, image_aligned = visual(image, self.space_dict, temperature, align, trace, self.keep)
        text_feat, text_aligned = self.read_text(text, temperature, align, trace, twin)
        return Views(F.normalize(image_feat, dim=-1), F.normalize(text_feat, dim=-1), image_aligned, text_aligned)

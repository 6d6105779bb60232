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
from madtp.method.alignment import similarity_loss
from madtp.method.keep import Keep, keep_batch
from madtp.shared.momentum import MomentumContrast

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

    def forward(
        self,
        image: Tensor,
        caption: Sequence[str] | Tensor,
        alpha: float,
        idx: Tensor,
        temperature: float = 0.0,
        trace: Trace | None = None,
    ) -> dict[str, Tensor]:
        """Losses of image-caption pairs; moves the momentum towers and the queue on.

        Args:
            image: [B, 3, S, S].
            caption: B texts, or their token ids [B, L].
            alpha: share of the momentum towers' opinion in the contrastive targets.
            idx: [B], numbers of the images; samples of one number are no negatives of each other.
            temperature: pruning temperature of all towers; 0 is the dense model.
            trace: where to write down what each layer of the online towers did to its tokens.

        Returns:
            `loss_ita` and, where T > 0, `loss_sim` and `loss_sim_m`. The momentum towers get no gradients, so the last
            one is a number to watch.
        """
        with torch.no_grad():
            self.logit_scale.clamp_(0, LARGEST_SCALE)
        self.update_momentum()
        text = caption if isinstance(caption, Tensor) else self.encode_captions(caption)
        align = temperature > 0
        image_feat, image_aligned = self.visual(image, self.space_dict, temperature, align, trace, self.keep)
        text_feat, text_aligned = self.read_text(text, temperature, align, trace)
        with torch.no_grad():
            image_feat_m, image_aligned_m = self.visual_m(image, self.space_dict, temperature, align, None, self.keep)
            text_feat_m, text_aligned_m = self.read_text(text, temperature, align, twin="_m")
        features = [F.normalize(feat, dim=-1) for feat in (image_feat, text_feat, image_feat_m, text_feat_m)]
        losses = {"loss_ita": self.contrastive_loss(*features, idx, alpha, self.logit_scale.exp())}
        self.enqueue(*features[2:], idx)
        if align:
            losses["loss_sim"] = similarity_loss(image_aligned, text_aligned)
            losses["loss_sim_m"] = similarity_loss(image_aligned_m, text_aligned_m)
        return losses

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

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Token ids [B, L] on the model's device, long texts cut."""
        text = tokenize(captions, self.most_tokens, truncate=True)
        return text.to(self.space_dict.device, non_blocking=True)

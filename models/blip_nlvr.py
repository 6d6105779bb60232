"""BLIP for NLVR2: is a statement true of two images?

Shapes: B batch, L text tokens, K learnable tokens, C their width.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from madtp.cost.trace import Trace
from madtp.method.alignment import similarity_loss
from madtp.method.distillation import distillation_loss
from madtp.method.errors import UserError
from madtp.shared.weights import checkpoint
from madtp.shared.weights.transformers_models import class_of
from models.blip import BlipBase
from models.building import built
from models.nlvr_encoder import nlvr_encoder


class BlipNLVR(BlipBase):
    """Image encoder, twin text encoder and a classifier on the first token."""

    text_limits = {"text": None}

    def __init__(self, med_config: str | dict, image_size: int, vit: str | dict, config: dict):
        super().__init__(image_size, vit, config, drop_path=0.1)
        sizes = self.text_config(med_config, self.visual_encoder.embed_dim)
        self.text_encoder = nlvr_encoder(sizes)
        width = sizes.hidden_size
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(
        self,
        image: Tensor,
        text: list[str],
        targets: Tensor | None = None,
        temperature: float = 0.0,
        train: bool = True,
        trace: Trace | None = None,
    ) -> dict[str, Tensor] | Tensor:
        """Losses in training, logits [B, 2] otherwise.

        Args:
            image: [2B, 3, H, W], the left images of the batch, then the right ones.
            text: B statements.
            targets: [B], 1 where the statement is true; needed for training only.
            temperature: pruning temperature; 0 is the dense model.
            train: return the losses.
            trace: where to write down what each layer did to its tokens.

        Raises:
            UserError: there are not two images for every statement.
        """
        align = train and temperature > 0
        text = self.tokenize(text, "[ENC]")
        if len(image) != 2 * len(text.input_ids):
            expected = "expected two of each, the left images of the batch before the right ones"
            raise UserError(f"{len(image)} images for {len(text.input_ids)} statements, {expected}")
        words = self.look_up(text)
        states, image_aligned = self.encode(image, temperature, align, trace, together=2)
        output = self.read(text, words, states.chunk(2), temperature, align, trace)
        logits = self.cls_head(output.first)
        if not train:
            return logits
        losses = {"loss_task": F.cross_entropy(logits, targets), **distillation_loss(self.teacher, image, states)}
        if align:
            left, right = image_aligned.chunk(2)
            losses["loss_sim"] = similarity_loss((left + right) / 2, output.aligned)
        return losses


def blip_nlvr(
    pretrained: str = "",
    image_size: int = 384,
    vit: str | dict = "base",
    med_config: str | dict = "configs/med_config.json",
    evaluate: bool = False,
    config: dict | None = None,
) -> BlipNLVR:
    """Builds the model and loads a checkpoint of BLIP (one cross-attention: copied into both), of MADTP or of ours.

    Raises:
        UserError: sizes that do not fit each other, or a checkpoint that cannot be read or does not fit.
    """
    if evaluate and (kind := class_of(pretrained)):
        raise UserError(
            f"{pretrained} is a {kind}: transformers has no class with NLVR2's twin encoder; let it start training, or "
            "evaluate BLIP's model_base_nlvr.pth"
        )
    sizes, twins = {"vit": vit, "med_config": med_config}, (checkpoint.copy_cross_attention_to_twins,)
    construct = partial(BlipNLVR, image_size=image_size)
    return built(construct, sizes, config, pretrained, evaluate, ("cls_head.", "crossattention."), twins)

"""BLIP for image-text retrieval: features of image and text that are compared (ITC), and a judge of pairs (ITM).

Shapes: B samples, W processes whose samples are candidates for negatives (1 or all), L = 35 text tokens, S image
tokens, D width, E width of the features.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.cost.processes import all_gather, rank
from madtp.cost.trace import Trace
from madtp.method.errors import UserError
from madtp.method.layout import RECTANGLE, Masked, Sequences
from madtp.method.merged import Merged
from madtp.method.precision import at_least_single
from madtp.method.pruning import own_tokens
from madtp.shared.layers import Guidance
from madtp.shared.momentum import MomentumContrast, Views, complete_momentum
from models.blip import BlipBase
from models.building import built
from models.med import med_encoder

IGNORED = -100  # label that costs no loss


class BlipRetrieval(MomentumContrast, BlipBase):
    """Image encoder, text encoder that also reads an image, a projection of each, and a classifier of pairs."""

    momentum_towers = ("visual_encoder", "vision_proj", "text_encoder", "text_proj")
    text_limits = {"caption": 35}

    def __init__(
        self,
        med_config: str | dict,
        image_size: int,
        vit: str | dict,
        embed_dim: int,
        queue_size: int,
        momentum: float,
        negative_all_rank: bool,
        config: dict,
    ):
        super().__init__(image_size, vit, config)
        image_width = self.visual_encoder.embed_dim
        self.text_encoder = med_encoder(self.text_config(med_config, image_width))
        if self.most_tokens < self.text_limits["caption"]:
            padded = f"captions are padded to {self.text_limits['caption']}"
            raise UserError(f"med_config: max_position_embeddings is {self.most_tokens}, but {padded}; raise it")
        width = self.text_encoder.shape.width
        self.vision_proj = nn.Linear(image_width, embed_dim)
        self.text_proj = nn.Linear(width, embed_dim)
        self.itm_head = nn.Linear(width, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))
        self.negative_all_rank = negative_all_rank
        self.architecture["embed_dim"] = embed_dim
        self.init_momentum(embed_dim, queue_size, momentum)

    def bounded_scale(self) -> Tensor:
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        return 1 / self.temp

    def encode_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [B, L], padded to the limit."""
        text = self.tokenize(captions, "[CLS]", padding="max_length", max_length=self.text_limits["caption"])
        return text.input_ids, text.attention_mask

    def encode_image(
        self, image: Tensor, temperature: float = 0.0, trace: Trace | None = None
    ) -> tuple[Sequences, Tensor]:
        """Tokens of images [B, 3, H, W], for `match`, and their normalised features [B, E]."""
        return self._image(image, Guidance.by(self.space_dict, temperature, False), trace)[:2]

    def encode_text(
        self, input_ids: Tensor, mask: Tensor, temperature: float = 0.0, trace: Trace | None = None
    ) -> Tensor:
        """Normalised features [B, E] of texts alone, from their token ids and mask [B, L]."""
        return self._text(input_ids, mask, Guidance.by(self.space_dict, temperature, False), trace)[0]

    def views(
        self,
        image: Tensor,
        text: tuple[Tensor, Tensor],
        temperature: float,
        trace: Trace | None = None,
        twin: str = "",
    ) -> Views:
        guidance = Guidance.by(self.space_dict, temperature, temperature > 0)
        states, image_feat, image_aligned = self._image(image, guidance, trace, twin)
        text_feat, text_aligned = self._text(*text, guidance, trace, twin)
        return Views(image_feat, text_feat, image_aligned, text_aligned, states)

    def further_losses(
        self, online: Views, text: tuple[Tensor, Tensor], idx: Tensor, temperature: float, trace: Trace | None
    ) -> dict[str, Tensor]:
        """ITM: each image with its text, each text with a hard wrong image, each image with a hard wrong text."""
        (image_feat, text_feat, _, _, states), (input_ids, mask) = online, text
        positive = self.match(input_ids, mask, states, temperature=temperature, trace=trace)

        everyone = all_gather if self.negative_all_rank else _alone
        same = idx.unsqueeze(1) == everyone(idx)  # [B, W * B]
        wrong_image = draw_negatives(text_feat, everyone(image_feat.detach()), self.temp, same)  # [B]
        wrong_text = draw_negatives(image_feat, everyone(text_feat.detach()), self.temp, same)
        own = torch.arange(len(idx), device=idx.device) + (len(idx) * rank() if self.negative_all_rank else 0)
        negative = self.match(
            torch.cat([input_ids, everyone(input_ids)[wrong_text]]),
            torch.cat([mask, everyone(mask)[wrong_text]]),
            gather_states(states, everyone).take(torch.cat([wrong_image, own])),
            temperature,
        )
        drawn = torch.stack([wrong_image, wrong_text], dim=1)
        right = same.gather(1, drawn).T.flatten()  # where there was no wrong one to draw
        labels = torch.cat([torch.ones_like(idx), IGNORED * right.to(idx.dtype)])
        logits = at_least_single(torch.cat([positive, negative]))
        return {"loss_itm": F.cross_entropy(logits, labels, ignore_index=IGNORED)}

    def match(
        self,
        input_ids: Tensor,
        mask: Tensor,
        states: Tensor | Sequences,
        temperature: float = 0.0,
        trace: Trace | None = None,
    ) -> Tensor:
        """Logits [B * G, 2] of "does not match" and "matches"; texts b * G ... b * G + G - 1 belong to image b.

        Args:
            input_ids: [B * G, L].
            mask: [B * G, L].
            states: tokens of B images; their keys and values are computed once, whatever G.
            temperature: pruning temperature of the text.
            trace: where to write down, as tower "multimodal", what each layer did to its tokens.
        """
        first = torch.full_like(input_ids[:, :1], self.tokenizer.convert_tokens_to_ids("[ENC]"))
        pairs = Trace()
        output = self.text_encoder(
            torch.cat([first, input_ids[:, 1:]], dim=1),
            mask,
            states=states,
            space_dict=self.space_dict,
            temperature=temperature,
            trace=pairs,
            keep=self.keep,
            fixed_length=True,
        )
        if trace is not None:
            trace.layers["multimodal"] = pairs.layers["text"]
        return self.itm_head(output.first)

    def _image(self, image: Tensor, guidance: Guidance, trace: Trace | None, twin: str = ""):
        """Tokens, normalised features and aligned feature of images by the online or the momentum tower."""
        encoder, projection = getattr(self, f"visual_encoder{twin}"), getattr(self, f"vision_proj{twin}")
        states, aligned = encoder.encode(image, guidance, trace, self.keep)
        return states, unit(projection(states.first)), aligned

    def _text(self, input_ids: Tensor, mask: Tensor, guidance: Guidance, trace: Trace | None, twin: str = ""):
        """Normalised features and aligned feature of texts alone by the online or the momentum tower."""
        encoder, projection = getattr(self, f"text_encoder{twin}"), getattr(self, f"text_proj{twin}")
        output = encoder(input_ids, mask, **guidance._asdict(), trace=trace, keep=self.keep, fixed_length=True)
        return unit(projection(output.first)), output.aligned


def _alone(values: Tensor) -> Tensor:
    """The candidates for negatives where every process keeps to its own samples."""
    return values


def unit(x: Tensor) -> Tensor:
    """Features of length 1, in single precision at least."""
    return F.normalize(at_least_single(x), dim=-1)


@torch.no_grad()
def draw_negatives(feature: Tensor, candidates: Tensor, temp: Tensor, same: Tensor) -> Tensor:
    """Draws a wrong candidate for each feature, the more similar the likelier: indices [B].

    Args:
        feature: [B, E].
        candidates: [W * B, E].
        temp: contrastive temperature.
        same: [B, W * B], True where a candidate is right. A row without a wrong one gets any.
    """
    with torch.autocast(feature.device.type, enabled=False):
        weights = (feature @ candidates.T / temp).softmax(dim=1) + 1e-4
    weights = weights.where(weights.isfinite(), 1.0)  # the loss of such a step is no number, and it is skipped
    weights = weights.masked_fill(same & ~same.all(dim=1, keepdim=True), 0)
    return torch.multinomial(weights, 1).squeeze(1)


def gather_states(states: Sequences, everyone: Callable[[Tensor], Tensor]) -> Sequences:
    """Image tokens of several processes, which may have kept different numbers of them: [W * B, longest S, D].

    Args:
        states: [B, S, D], a rectangle, a masked one or one with sizes.
        everyone: joins the tensors of the processes.
    """
    tokens, layout = states
    if isinstance(layout, Merged):  # as many tokens everywhere
        sizes = layout.sizes_of_tokens
        return Sequences(everyone(tokens), layout.with_sizes(None if sizes is None else everyone(sizes)))
    own = torch.ones_like(tokens[..., 0], dtype=torch.bool) if layout.own is None else layout.own
    lengths = everyone(own.sum(dim=1))  # [W * B]
    longest = int(lengths.max())
    tokens = everyone(F.pad(tokens, (0, 0, 0, longest - tokens.shape[1])))
    return Sequences(tokens, RECTANGLE if lengths.eq(longest).all() else Masked(own_tokens(lengths, longest)))


def blip_retrieval(
    pretrained: str = "",
    image_size: int = 384,
    vit: str | dict = "base",
    med_config: str | dict = "configs/med_config.json",
    embed_dim: int = 256,
    queue_size: int = 57600,
    momentum: float = 0.995,
    negative_all_rank: bool = False,
    evaluate: bool = False,
    config: dict | None = None,
) -> BlipRetrieval:
    """Builds the model and loads a checkpoint of BLIP, of MADTP or of ours.

    Raises:
        UserError: sizes that do not fit each other, or a checkpoint that cannot be read or does not fit.
    """
    sizes = {"vit": vit, "med_config": med_config, "embed_dim": embed_dim}
    contrast = {"queue_size": queue_size, "momentum": momentum, "negative_all_rank": negative_all_rank}
    construct = partial(BlipRetrieval, image_size=image_size, **contrast)
    fresh = ("vision_proj", "text_proj", "itm_head", "temp", "crossattention")
    model = built(construct, sizes, config, pretrained, evaluate, fresh, (complete_momentum,))
    if not pretrained:
        model.copy_params()  # the scheme may have drawn the weights of towers and twins anew
    return model

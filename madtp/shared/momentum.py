"""Momentum contrast for retrieval: twins that follow the towers slowly, a queue of their features, soft targets.

After He et al., 2020 (queue and momentum) and Li et al., 2021 (soft targets), as BLIP and CLIP are fine-tuned.

Shapes: B samples of this process, Q length of the queue, E width of the features, K learnable tokens, C their width.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.cost.processes import all_gather
from madtp.cost.trace import Trace
from madtp.method.alignment import similarity_loss
from madtp.method.distillation import Teacher, distillation_loss
from madtp.method.precision import at_least_single

EMPTY = -100  # number of the image where the queue has not been filled yet
QUEUES = ("image_queue", "text_queue", "idx_queue", "ptr_queue")


class Views(NamedTuple):
    """What the towers, online or momentum, make of a batch.

    Attributes:
        image: [B, E], normalised features.
        text: [B, E].
        image_aligned: [B, K, C], or None where nothing is pruned.
        text_aligned: [B, K, C].
        states: tokens of the images, for losses besides the contrastive one.
    """

    image: Tensor
    text: Tensor
    image_aligned: Tensor | None
    text_aligned: Tensor | None
    states: Any = None


class MomentumContrast(nn.Module):
    """Adds to a model of two towers what contrastive training needs; `init_momentum` builds it.

    The model says how it encodes captions and views a batch, how similarities are scaled, and what else it learns by.

    Attributes:
        momentum_towers: names of the modules and parameters that get a twin, called `NAME_m`.
        momentum: share of its old weights that a twin keeps in every step.
        teacher: the dense image tower that the model also learns from, None for none.
    """

    momentum_towers: tuple[str, ...]
    momentum: float
    teacher: Teacher | None = None

    def init_momentum(self, feature_width: int, queue_size: int, momentum: float = 0.995) -> None:
        """Makes the twins, equal to their towers, and a queue of random features that belong to no image.

        Fidelity: twins and queue are entries of the model's own, since released checkpoints name them so.
        """
        self.momentum = momentum
        for name in self.momentum_towers:
            setattr(self, f"{name}_m", deepcopy(getattr(self, name)).requires_grad_(False))
        for name in ("image_queue", "text_queue"):
            self.register_buffer(name, F.normalize(torch.randn(feature_width, queue_size), dim=0))
        self.register_buffer("idx_queue", torch.full((1, queue_size), EMPTY))
        self.register_buffer("ptr_queue", torch.zeros(1, dtype=torch.long))

    def forward(
        self,
        image: Tensor,
        caption: Sequence[str],
        alpha: float,
        idx: Tensor,
        temperature: float = 0.0,
        trace: Trace | None = None,
    ) -> dict[str, Tensor]:
        """Losses of image-caption pairs; moves the momentum towers and the queue on.

        Args:
            image: [B, 3, H, W].
            caption: B texts.
            alpha: share of the momentum towers' opinion in the contrastive targets.
            idx: [B], numbers of the images; samples of one number are no negatives of each other.
            temperature: pruning temperature of all towers; 0 is the dense model.
            trace: where to write down what each layer of the online towers did to its tokens.

        Returns:
            `loss_ita`, the model's own, `loss_distil` where there is a teacher and, where T > 0, `loss_sim` and
            `loss_sim_m`. The momentum towers get no gradients, so the last one is a number to watch.
        """
        scale = self.bounded_scale()
        self.update_momentum()
        text = self.encode_captions(caption)
        online = self.views(image, text, temperature, trace)
        with torch.no_grad():
            momentum = self.views(image, text, temperature, twin="_m")
        features = online.image, online.text, momentum.image, momentum.text
        features = tuple(map(at_least_single, features))  # autocast leaves norms in half precision on a CPU
        losses = {"loss_ita": self.contrastive_loss(*features, idx, alpha, scale)}
        losses |= self.further_losses(online, text, idx, temperature, trace)
        losses |= distillation_loss(self.teacher, image, online.image if online.states is None else online.states)
        self.enqueue(*features[2:], idx)
        if temperature > 0:
            losses["loss_sim"] = similarity_loss(online.image_aligned, online.text_aligned)
            losses["loss_sim_m"] = similarity_loss(momentum.image_aligned, momentum.text_aligned)
        return losses

    def bounded_scale(self) -> Tensor:
        """What similarities are multiplied by, after it was brought back into its bounds."""
        raise NotImplementedError

    def encode_captions(self, captions: Sequence[str]) -> Any:
        """Texts as `views` takes them."""
        raise NotImplementedError

    def views(self, image: Tensor, text: Any, temperature: float, trace: Trace | None = None, twin: str = "") -> Views:
        """What the towers make of a batch; `twin` is the ending of their names: none, or the momentum twins' `_m`."""
        raise NotImplementedError

    def further_losses(self, online: Views, text: Any, idx: Tensor, temperature: float, trace: Trace | None) -> dict:
        """Losses of the model's own, from what its online towers made of the batch."""
        return {}

    @torch.no_grad()
    def copy_params(self) -> None:
        """Sets the momentum towers to the online ones."""
        torch._foreach_copy_(*self._twins())

    @torch.no_grad()
    def update_momentum(self) -> None:
        """Moves the momentum towers towards the online ones, a step of 1 - momentum of the way."""
        torch._foreach_lerp_(*self._twins(), 1 - self.momentum)

    def _twins(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters of the momentum towers and, in the same order, of the online ones."""
        parameters = dict(self.named_parameters())
        online = [name for name in parameters if name.partition(".")[0] in self.momentum_towers]
        return [parameters[twin_name(name)] for name in online], [parameters[name] for name in online]

    def contrastive_loss(
        self, image: Tensor, text: Tensor, image_m: Tensor, text_m: Tensor, idx: Tensor, alpha: float, scale: Tensor
    ) -> Tensor:
        """ITC: each feature against the batch's and the queue's momentum features of the other modality.

        Args:
            image: [B, E], normalised, as all features.
            text: [B, E].
            image_m: [B, E], of the momentum tower.
            text_m: [B, E], of the momentum tower.
            idx: [B], numbers of the images; samples of one number match.
            alpha: share of the momentum towers' opinion in the targets.
            scale: what similarities are multiplied by (the inverse of the contrastive temperature).
        """
        with torch.autocast(image.device.type, enabled=False):
            images = torch.cat([image_m.T, self.image_queue], dim=1)  # [E, B + Q]
            texts = torch.cat([text_m.T, self.text_queue], dim=1)
            same = idx.unsqueeze(1) == torch.cat([idx, self.idx_queue[0]])  # [B, B + Q]
            image_to_text = soft_target_loss(image, image_m, texts, same, alpha, scale)
            return (image_to_text + soft_target_loss(text, text_m, images, same, alpha, scale)) / 2

    @torch.no_grad()
    def enqueue(self, image_m: Tensor, text_m: Tensor, idx: Tensor) -> None:
        """Puts the momentum features of all processes in the place of the oldest ones.

        What is not finite stays out: it would spoil the losses of a whole round of the queue.

        Args:
            image_m: [B, E].
            text_m: [B, E].
            idx: [B], numbers of the images.
        """
        image_m, text_m, idx = all_gather(image_m), all_gather(text_m), all_gather(idx)
        finite = (image_m.isfinite() & text_m.isfinite()).all(dim=1)
        image_m, text_m = (features.where(finite[:, None], 0) for features in (image_m, text_m))
        idx = idx.where(finite, EMPTY)
        size = self.idx_queue.shape[1]
        places = (self.ptr_queue + torch.arange(len(idx), device=idx.device)) % size
        newest = slice(-size, None)  # of a batch that is longer than the queue
        self.image_queue[:, places[newest]] = image_m[newest].T
        self.text_queue[:, places[newest]] = text_m[newest].T
        self.idx_queue[0, places[newest]] = idx[newest]
        self.ptr_queue.add_(len(idx)).remainder_(size)


def twin_name(name: str) -> str:
    """The momentum twin of a parameter: `tower.weight` -> `tower_m.weight`."""
    tower, dot, rest = name.partition(".")
    return f"{tower}_m{dot}{rest}"


def soft_target_loss(
    feature: Tensor, feature_m: Tensor, others: Tensor, same: Tensor, alpha: float, scale: Tensor
) -> Tensor:
    """Cross-entropy of similarities with targets that are partly the momentum tower's own similarities.

    Args:
        feature: [B, E].
        feature_m: [B, E], of the momentum tower.
        others: [E, B + Q], momentum features of the other modality.
        same: [B, B + Q], True where they match; at least once in every row.
        alpha: share of the momentum tower's opinion in the targets.
        scale: what similarities are multiplied by.
    """
    with torch.no_grad():
        hard = F.normalize(same.to(others.dtype), p=1, dim=1)
        targets = alpha * (scale * feature_m @ others).softmax(dim=1) + (1 - alpha) * hard
    return F.cross_entropy(scale * feature @ others, targets)


def ramped_alpha(alpha: float, progress: float) -> float:
    """The momentum towers' share in the targets: grows from 0 to `alpha` over the first epoch."""
    return alpha * min(1.0, progress)


def complete_momentum(state: dict[str, Tensor], model: MomentumContrast) -> dict[str, Tensor]:
    """Gives a checkpoint what it may lack: twins of its towers, and a fresh queue where it has none of this length."""
    own, complete = model.state_dict(), dict(state)
    for name in own:
        if name.partition(".")[0] in model.momentum_towers:
            complete.setdefault(twin_name(name), complete.get(name, own[name]))
    if any(name not in state or state[name].shape != own[name].shape for name in QUEUES):
        complete |= {name: own[name] for name in QUEUES}
    return complete

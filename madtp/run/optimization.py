"""From a loss to a step: AdamW, the learning-rate schedule, scaled losses, accumulated gradients, clipping."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils import cosine_lr


class Gradients(NamedTuple):
    """What a step was taken by.

    Attributes:
        names: of the parameters that have a gradient.
        norms: of their gradients, on the device, in that order.
    """

    names: list[str]
    norms: Tensor

    def fault(self) -> str:
        """Whose gradients are not finite, or the largest where only all together are not; reads them."""
        faulty = [name for name, fine in zip(self.names, self.norms.isfinite().tolist(), strict=True) if not fine]
        if not faulty:
            return f"the norm of the gradient, most of it that of {self.names[int(self.norms.argmax())]},"
        some = faulty[0] if len(faulty) == 1 else f"{faulty[0]} to {faulty[-1]}"
        return f"the gradient of {some} ({len(faulty)} of {len(self.names)} parameters)"


class Optimization:
    """Takes the losses of one run, step by step.

    Args:
        model: its parameters that require a gradient are trained; data-parallel where there are several processes.
        config: `init_lr`, `min_lr`, `weight_decay`, `betas`, `clip_grad`, `lr_schedule`, `warmup_steps`, `max_epoch`.
        dtype: of the mixed precision; float16 scales its losses.
        accum: batches whose gradients make one step.
        batches: of one epoch.

    Attributes:
        gradients: of the last step.
    """

    gradients: Gradients | None = None

    def __init__(self, model: nn.Module, config: dict, dtype: torch.dtype, accum: int, batches: int):
        self.model, self.config, self.accum, self.batches = model, config, accum, batches
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.names, self.parameters = [name.removeprefix("module.") for name, _ in trained], [one for _, one in trained]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config["init_lr"],
            betas=tuple(config["betas"]),
            weight_decay=config["weight_decay"],
            fused=True,  # the only form that skips a step by a flag on the device
        )
        device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    @property
    def rate(self) -> float:
        """The learning rate as it is."""
        return self.optimizer.param_groups[0]["lr"]

    def schedule(self, epoch: int, batch: int) -> None:
        """Sets the learning rate: half a cosine, by epochs or by steps, after a linear warm-up."""
        config = self.config
        steps_per_epoch = math.ceil(self.batches / self.accum)
        step = epoch * steps_per_epoch + batch // self.accum
        warmup = config["warmup_steps"]
        if config["lr_schedule"] == "step":
            done, total = max(step - warmup, 0), config["max_epoch"] * steps_per_epoch - warmup
        else:
            done, total = epoch, config["max_epoch"]
        rate = cosine_lr(config["init_lr"], config["min_lr"], done, total)
        if step < warmup:
            rate *= (step + 1) / (warmup + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def accumulate(self, batch: int) -> AbstractContextManager:
        """A context for the batch's forward and backward; processes exchange gradients only where a step follows."""
        silent = not self.steps_after(batch) and hasattr(self.model, "no_sync")
        return self.model.no_sync() if silent else nullcontext()

    def step(self, loss: Tensor, batch: int) -> Tensor:
        """Adds the loss's gradient and, at the end of a group of batches, moves the weights if it is finite.

        A loss that is not finite makes a gradient of NaN, whatever its own would be. Processes average their gradients,
        so they have the same norm everywhere and all processes skip the same steps. The host learns of none of this.

        Returns:
            1 if a step was skipped, else 0; a scalar on the device.
        """
        group = min(self.accum, self.batches - batch // self.accum * self.accum)
        scaled = self.scaler.scale(loss / group)
        scaled.backward(torch.where(loss.isfinite(), 1.0, math.nan).to(scaled.dtype))
        if not self.steps_after(batch):
            return torch.zeros((), device=loss.device)
        self.scaler.unscale_(self.optimizer)
        norm = self._norm()
        if self.config["clip_grad"] > 0:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config["clip_grad"], norm)
        skipped = (~norm.isfinite()).float()
        self.optimizer.found_inf = skipped  # where GradScaler, too, tells a fused optimizer to stay where it is
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return skipped

    def _norm(self) -> Tensor:
        """The norm of the whole gradient, as `nn.utils.get_total_norm` has it; keeps that of every part."""
        given = [
            (name, one.grad) for name, one in zip(self.names, self.parameters, strict=True) if one.grad is not None
        ]
        norms = torch.stack(torch._foreach_norm([gradient for _, gradient in given]))
        self.gradients = Gradients([name for name, _ in given], norms)
        return torch.linalg.vector_norm(norms)

    def steps_after(self, batch: int) -> bool:
        """Whether the weights move after this batch: it ends a group, or the epoch."""
        return (batch + 1) % self.accum == 0 or batch + 1 == self.batches

    def state_dict(self) -> dict:
        """Everything a resumed run needs."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Goes on from `state_dict`, by the configuration's own weight decay and betas."""
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group |= {"weight_decay": self.config["weight_decay"], "betas": tuple(self.config["betas"])}
        if state["scaler"]:  # nothing of a run without float16
            self.scaler.load_state_dict(state["scaler"])

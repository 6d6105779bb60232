"""A task small enough to test the engine by itself: a linear model whose trace says what a temperature would keep.

`python -m tests.toy FLAGS` runs it like one of the scripts.
"""

import math
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from data.loading import collate
from madtp.run.engine import Task, main
from madtp.scoring.metrics import accuracy

PATCHES = 400
CEILING = 0.4


class Points(Dataset):
    """Points whose class is the sign of their first coordinate."""

    collate = staticmethod(collate)

    def __init__(self, size, seed):
        self.points = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        point = self.points[index]
        return {"point": point, "target": (point[0] > 0).long(), "index": torch.tensor(index)}


class ToyModel(nn.Module):
    """A linear classifier with dropout; the more its weights grow, the more a temperature keeps."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(4, 2)
        self.space_dict = nn.Parameter(torch.randn(2))
        self.forwards = []

    def kept(self, temperature):
        midpoint = 50 * (1 + float(self.head.weight.detach().abs().mean()))
        return CEILING + (1 - CEILING) / (1 + temperature / midpoint)

    def forward(self, point, target=None, temperature=0.0, trace=None):
        self.forwards.append(temperature)
        logits = self.head(self.dropout(point))
        if trace is not None:
            left = 1 + round(PATCHES * self.kept(temperature))
            trace.add("image", 1 + PATCHES, left, scored=temperature > 0)
        if target is None:
            return logits
        losses = {"loss_task": F.cross_entropy(logits, target)}
        if temperature > 0:
            losses["loss_sim"] = (self.space_dict - logits.mean(dim=0)).square().mean()
        return losses


class Toy(Task):
    """Classifies points."""

    name = "toy"
    default_config = "toy.yaml"
    recipe = "nlvr"
    explode_at = math.inf

    def datasets(self, evaluate):
        return None if evaluate else Points(48, 0), Points(37, 1), Points(20, 2)

    def build_model(self, config, evaluate):
        self.model = ToyModel()
        if config["pretrained"]:
            self.model.load_state_dict(torch.load(config["pretrained"], weights_only=True)["model"])
        return self.model

    def losses(self, model, batch, temperature, progress):
        scale = math.nan if progress >= self.explode_at else 1.0
        losses = model(batch["point"], batch["target"], temperature)
        return {name: loss * scale for name, loss in losses.items()}

    def predict(self, model, batch, temperature, trace):
        logits = model(batch["point"], temperature=temperature, trace=trace)
        return list(zip(logits.argmax(dim=1).tolist(), batch["target"].tolist(), strict=True))

    def outputs(self, model, batch, temperature):
        return model(batch["point"], temperature=temperature).softmax(dim=-1)

    def metrics(self, predictions, dataset):
        predicted, targets = zip(*(result for _, result in predictions), strict=True)
        return {**accuracy(predicted, targets), "results": list(predicted)}

    def score(self, metrics):
        return metrics["accuracy"]

    def cost(self, model, trace):
        return sum(layer.left for layer in trace.layers["image"]) / (1 + PATCHES)


if __name__ == "__main__":
    sys.exit(main(Toy()))

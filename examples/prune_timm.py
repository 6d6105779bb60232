"""Half of a timm vision transformer's cost, in one line.

    python -m pip install .   # in the clone, once
    python examples/prune_timm.py [--pretrained]

Without --pretrained the model is a random one, and nothing is downloaded.
"""

import sys

import timm
import torch

import madtp

model = timm.create_model("vit_tiny_patch16_224", pretrained="--pretrained" in sys.argv).eval()
images = torch.randn(4, 3, 224, 224)  # take some of yours, as the model wants them normalised

with torch.no_grad():
    dense = model(images)
    madtp.prune(model, p=0.5, batches=images)
    pruned = model(images)

cost = madtp.cost(model)
print(f"{cost['gflops']:.2f} of {cost['gflops_dense']:.2f} GFLOPs, {cost['percent']:.1f} % of dense")
print("tokens after every layer:", *cost["tokens"])
print(f"same first class: {(dense.argmax(1) == pruned.argmax(1)).float().mean():.0%}")
print("a picture of the tokens that are left:", madtp.picture(model, images).shape)
madtp.restore(model)

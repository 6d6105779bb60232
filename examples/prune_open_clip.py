"""Half of the cost of open_clip's image tower, in one line.

    python -m pip install .   # in the clone, once
    python examples/prune_open_clip.py [PRETRAINED]

Without a name of published weights, as `laion2b_s34b_b79k`, the model is a random one, and nothing is downloaded.
"""

import sys

import open_clip
import torch

import madtp

model = open_clip.create_model("ViT-B-32", pretrained=sys.argv[1] if sys.argv[1:] else None).eval()
images = torch.randn(4, 3, 224, 224)  # take some of yours, through `open_clip.create_model_and_transforms`

with torch.no_grad():
    dense = model.encode_image(images, normalize=True)
    madtp.prune(model, p=0.5, batches=images)
    pruned = model.encode_image(images, normalize=True)

cost = madtp.cost(model)
print(f"{cost['gflops']:.2f} of {cost['gflops_dense']:.2f} GFLOPs, {cost['percent']:.1f} % of dense")
print("tokens after every layer:", *cost["tokens"])
print(f"cosine to the dense feature: {(dense * pruned).sum(1).mean():.3f}")
madtp.restore(model)

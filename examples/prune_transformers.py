"""BLIP of transformers captions from merged tokens.

    python -m pip install .   # in the clone, once
    python examples/prune_transformers.py [FOLDER OR NAME]

Without a folder or name of published weights, as `Salesforce/blip-image-captioning-base`, the model is a small random
one, and nothing is downloaded.
"""

import sys

import torch
from transformers import BlipConfig, BlipForConditionalGeneration

import madtp

if sys.argv[1:]:
    model = BlipForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
else:
    text = {"hidden_size": 96, "encoder_hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    image = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 224}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=image)).eval()
size = model.config.vision_config.image_size
images = torch.randn(4, 3, size, size)  # take some of yours, through the model's processor

madtp.prune(model, p=0.5, batches=images)
words = model.generate(images, num_beams=3, max_length=8)

cost = madtp.cost(model)
print(f"{cost['gflops']:.2f} of {cost['gflops_dense']:.2f} GFLOPs in the image tower, {cost['percent']:.1f} % of dense")
print("tokens after every layer, the last number of which the text attends to:", *cost["tokens"])
print("word pieces:", words.tolist()[0])
madtp.restore(model)

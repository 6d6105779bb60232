"""What the towers of BLIP and CLIP share: the loop over layers, momentum, generation, weights in files.

It knows nothing of tasks, data or how a model is trained.
"""

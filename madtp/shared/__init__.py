"""What the towers of BLIP and CLIP share: the loop over layers, momentum, generation, weights in files.

Besides, how files are written whole and how the processes of a run meet, which `utils` hands on.

`library` brings the same loop, with coverage, to models of other libraries.
It knows nothing of tasks, data or how a model is trained.
"""

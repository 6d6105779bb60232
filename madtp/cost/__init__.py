"""What a forward pass costs, over all processes, and the temperature that makes it cost what was asked.

It knows nothing of models, files or training: tokens are a number.
"""

"""What a forward pass costs, and the temperature that makes it cost what was asked.

It knows tokens by their number alone: nothing of models, files or training.
"""

"""The paper's formulas as functions on tensors: alignment, importance, which tokens go and how the rest lies in memory.

It knows nothing of towers, files, costs or training.
"""

"""Weights on their way from a file into a model and back.

It knows nothing of what a model computes.
"""

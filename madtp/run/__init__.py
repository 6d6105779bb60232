"""One loop that trains and evaluates any task under a configuration, and goes on after any stop.

It knows nothing of the tasks, the models and their scores.
"""

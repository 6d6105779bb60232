"""How good the answers are: accuracy, caption scores, recall and re-ranking.

It knows nothing of training, pictures and pages.
"""

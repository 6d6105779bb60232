"""Cleaning of captions and questions: the words that BLIP was trained on."""

import re

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(caption: str, max_words: int = 50) -> str:
    """Lower-cases a caption, turns punctuation into space, squeezes spaces and cuts after `max_words` words."""
    return " ".join(_PUNCTUATION.sub(" ", caption.lower()).split()[:max_words])


def clean_question(question: str, max_words: int = 50) -> str:
    """Lower-cases a question, drops punctuation (the question mark stays) and cuts after `max_words` words."""
    return " ".join(_PUNCTUATION.sub("", question.lower()).split()[:max_words])

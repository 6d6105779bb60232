"""The error that users see, and how it quotes what they wrote."""

import reprlib


class UserError(ValueError):
    """A mistake the user can mend. Its message is one line: the value, the file and the way out."""


_EXCERPT = reprlib.Repr()
_EXCERPT.maxstring = 60


def excerpt(value: object) -> str:
    """What a user wrote, for an error: one line, never long, however large or deep the value is."""
    try:
        text = _EXCERPT.repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        text = f"a {type(value).__name__} with too many digits"
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:120]}..."

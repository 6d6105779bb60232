"""CLIP's byte-pair tokenizer: open_clip's, with the vocabulary that comes in its package."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from madtp.method.errors import UserError

CONTEXT_LENGTH = 77
VOCABULARY = 49408
MARKS = ("<|startoftext|>", "<|endoftext|>")  # the last two words


def tokenize(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False) -> Tensor:
    """Token ids [B, context_length]: start of text, the text, end of text (the largest id), zeros.

    Args:
        texts: one text or B of them.
        context_length: tokens in a row.
        truncate: cut a text that is too long, its last token becoming the end of text.

    Raises:
        UserError: a text is too long and is not to be cut.
    """
    tokenizer = _tokenizer()
    texts = [texts] if isinstance(texts, str) else texts
    ids = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        tokens = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        if len(tokens) > context_length:
            if not truncate:
                raise UserError(
                    f"{text!r} has {len(tokens)} tokens, more than {context_length}; shorten it or pass truncate=True"
                )
            tokens = [*tokens[: context_length - 1], tokenizer.eot_token_id]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def words(text: str) -> list[str]:
    """What the tokens behind the start of text stand for, the end of text included."""
    tokenizer = _tokenizer()
    return [*(tokenizer.decoder[token].removesuffix("</w>") for token in tokenizer.encode(text)), "[END]"]


def byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary, by the names that CLIP's own files have for start and end, and the pairs to merge in order."""
    tokenizer = _tokenizer()
    words = list(tokenizer.encoder)[:-2] + list(MARKS)
    return {word: number for number, word in enumerate(words)}, sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)


@lru_cache
def _tokenizer():
    from open_clip.tokenizer import SimpleTokenizer  # imported here, since all of open_clip comes along

    return SimpleTokenizer()

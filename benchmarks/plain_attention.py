"""Attention and its scores as the method writes them, from a map held whole: the side that ours is compared with."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F

from madtp.method import layout, packed
from madtp.method.attention import AttentionScores

MAXIMA = {"amax": lambda weights: weights.amax(dim=1), "max": lambda weights: weights.max(dim=1).values}  # over heads


def plain_attend(query, key, value, mask=None, scores=False, dropout=0.0, counted=None, maximum="amax"):
    """Takes and returns what `madtp.method.attention.attend` does; `maximum` is a key of `MAXIMA`."""
    if not scores:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout), None
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        weights = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1)
        output = F.dropout(weights, dropout) @ value
        largest = MAXIMA[maximum](weights[:, :, 1:, 1:]).float()
        if counted is not None:
            largest = largest * counted[:, 1:, None]
        norms = output[:, :, 1:].float().norm(dim=-1)
        share = norms / (norms.sum(dim=1, keepdim=True) + 1e-8)
        return output, AttentionScores(largest.sum(dim=1), (weights[:, :, 0, 1:] * share).sum(dim=1))


@contextmanager
def plain_attention(maximum: str = "amax") -> Iterator[None]:
    """Within it every layout of tokens attends plainly."""
    plain = partial(plain_attend, maximum=maximum)
    with mock.patch.object(layout, "attend", plain), mock.patch.object(packed, "attend", plain):
        yield

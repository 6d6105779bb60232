"""Triton's kernels run in its interpreter where there is no GPU: it has to be told before anything imports it."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

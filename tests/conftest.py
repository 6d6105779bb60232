"""What every test relies on: Triton's interpreter where there is no GPU, and examples that time does not decide."""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # it has to be told before anything imports it

settings.register_profile("calm", deadline=None, derandomize=True)
settings.load_profile("calm")

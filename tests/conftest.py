"""What every test relies on: Triton's interpreter where there is no GPU, the same precision on every processor, and
examples that time does not decide.
"""

import os
from pathlib import Path

import torch
from hypothesis import settings

from madtp.run import precision

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # it has to be told before anything imports it

precision.PROCESSOR = Path("an unknown processor")  # on which --amp auto is float32

settings.register_profile("calm", deadline=None, derandomize=True)
settings.load_profile("calm")

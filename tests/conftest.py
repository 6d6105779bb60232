"""What every test relies on: no GPU, Triton's interpreter, the same precision on every processor, and examples that
time does not decide.
"""

import os
from pathlib import Path

from hypothesis import settings

from madtp.run import precision

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU rounds otherwise, and two processes need two; gpu.sh tests them
os.environ["TRITON_INTERPRET"] = "1"  # it has to be told before anything imports it

precision.PROCESSOR = Path("an unknown processor")  # on which --amp auto is float32

settings.register_profile("calm", deadline=None, derandomize=True)
settings.load_profile("calm")

"""What the tests of retrieval share."""

import pytest

from models.blip_retrieval import blip_retrieval
from tests.golden.fill import fill
from tests.scoring.small import SIZES


@pytest.fixture(scope="module")
def model():
    return fill(blip_retrieval(**SIZES, embed_dim=16, queue_size=6)).eval().double()

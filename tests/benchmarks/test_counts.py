"""Coverage with a count for every sample: each is what it would be alone, and richer pictures keep more."""

import pytest
import torch

from benchmarks.comparison.counts import Counted, richness
from madtp.cost.trace import Trace
from madtp.method.keep import Coverage
from madtp.shared.layers import Guidance
from tests.golden.fill import seeded
from tests.method.test_keep import MODELS
from tests.tiny import images

DEPTH, PATCHES, AMOUNT = 3, 16, 0.5
RULE = Counted(DEPTH, 0.7)


@pytest.fixture(scope="module")
def tower():
    model = MODELS["caption"]()

    def encode(image, rule, amount, trace=None):
        with torch.no_grad():
            return model.visual_encoder.encode(image, Guidance.by(model.space_dict, amount, False), trace, rule)[0]

    return encode


@pytest.fixture
def pictures():
    """From plain to rich: noise of growing strength on one colour."""
    return 1 + torch.linspace(0.02, 2, 5, dtype=torch.float64).view(-1, 1, 1, 1) * images(5, seed=7)


def test_richness_is_by_hand():
    x, attention = seeded(1, 2, 6, 4).double(), seeded(2, 2, 6).double().softmax(dim=1)
    for found, tokens, row in zip(richness(x, attention), x, attention, strict=True):
        importance = (1 / 6 + row / row.sum()) / 2
        wanted = 0.0
        for j in range(6):
            others = [i for i in range(6) if importance[i] > importance[j]]
            cosines = [float(torch.cosine_similarity(tokens[i], tokens[j], dim=0)) for i in others]
            wanted += float(importance[j]) * (1 - max([0.0, *cosines]))
        assert found == pytest.approx(wanted, rel=2 ** (1 / 32) - 1)


def test_each_sample_is_what_coverage_does_alone_by_its_own_amount(tower, pictures):
    trace = Trace()
    together = tower(pictures, RULE, AMOUNT, trace)
    counts = trace.layers["image"][-1].left
    assert len(set(counts)) > 2 and counts[0] < counts[-1]
    assert together.layout.sizes_of_tokens.sum(dim=1).tolist() == pytest.approx([1 + PATCHES] * 5)
    for tokens, count, rich, one in zip(together.tokens, counts, together.layout.rich, pictures, strict=True):
        alone = tower(one.unsqueeze(0), Coverage(DEPTH, 0.7), AMOUNT / rich).tokens[0]
        assert len(alone) == count
        torch.testing.assert_close(tokens[:count], alone, rtol=0, atol=1e-10)

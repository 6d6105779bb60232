"""How a checkpoint's model is asked: by its own rule, or the one that is named."""

import pytest

from madtp.method.errors import UserError
from madtp.shared.weights.stored import Stored


def test_a_model_goes_by_its_own_rule_unless_another_is_named():
    covered, dense = Stored(1.2, "coverage", shape=0.7), Stored(0.0, "coverage", shape=0.7)
    assert covered.rule(None, 2.0, None) == {"keep": "coverage", "shape": 0.7}
    assert covered.rule(None, 2.0, None, shape_named=True) == {"keep": "coverage", "shape": 2.0}
    assert covered.rule("batch", 2.0, 4.0) == {"keep": "batch", "shape": 2.0}
    assert dense.rule("batch", 2.0, None) == {"keep": "batch", "shape": 2.0}
    with pytest.raises(UserError, match="--keep sample needs a temperature"):
        covered.rule("sample", 2.0, None)
    with pytest.raises(UserError, match="shape is 2, but tokens are kept by batch"):
        dense.rule("batch", 2.0, None, shape_named=True)


def test_only_the_rule_batch_minds_its_company():
    assert "batches of 8 and is asked in batches of 4" in Stored(1.0, "batch", 8).other_company(4)
    for stored in (Stored(1.0, "batch", 4), Stored(1.0), Stored(0.0, "batch", 8), Stored(1.0, "sample", 8)):
        assert not stored.other_company(4)

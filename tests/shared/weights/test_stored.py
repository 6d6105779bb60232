"""How a checkpoint's model is asked: by its own rule, or the one that is named."""

import pytest

from madtp.method.errors import UserError
from madtp.shared.weights.stored import Stored


def test_a_model_goes_by_its_own_rule_unless_another_is_named():
    covered, dense = Stored(1.2, "coverage", None, 0.7, True), Stored(0.0, "coverage", None, 0.7, True)
    config, asked = {"shape": 2.0, "keep_norm": False}, {"shape": 2.0, "keep_norm": True}
    assert covered.rule(None, None, config) == {"keep": "coverage", "shape": 0.7, "keep_norm": True}
    assert covered.rule(None, None, config, ["shape"]) == {"keep": "coverage", "shape": 2.0, "keep_norm": True}
    assert covered.rule(None, None, config, ["keep_norm"]) == {"keep": "coverage", "shape": 0.7, "keep_norm": False}
    assert covered.rule("batch", 4.0, config) == {"keep": "batch", **config}
    assert dense.rule("batch", None, config) == {"keep": "batch", **config}
    for keep in ("coverage", "sample"):
        assert Stored().rule(None, None, {"keep": keep, "shape": None, "keep_norm": False})["keep"] == keep, "dense"
    with pytest.raises(UserError, match="--keep sample needs a temperature"):
        covered.rule("sample", None, config)
    with pytest.raises(UserError, match="shape is 2, but tokens are kept by batch"):
        dense.rule("batch", None, config, ["shape"])
    with pytest.raises(UserError, match="keep_norm is true, but tokens are kept by batch"):
        dense.rule("batch", None, asked, ["keep_norm"])


def test_only_the_rule_batch_minds_its_company():
    assert "batches of 8 and is asked in batches of 4" in Stored(1.0, "batch", 8).other_company(4)
    for stored in (Stored(1.0, "batch", 4), Stored(1.0), Stored(0.0, "batch", 8), Stored(1.0, "sample", 8)):
        assert not stored.other_company(4)


def test_a_temperature_of_the_other_rule_is_said():
    assert "T 7.5 was found for keep=batch; by sample it leaves another cost" in Stored(7.5).other_rule("sample")
    for stored, keep in ((Stored(7.5), "batch"), (Stored(0.0), "sample"), (Stored(0.5, "coverage"), "batch")):
        assert not stored.other_rule(keep)

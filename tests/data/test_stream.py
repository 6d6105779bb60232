"""Large JSON files are read an entry at a time, and hold what they would whole."""

import json
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.official import stream
from utils import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(
    values=st.lists(VALUES, max_size=5), others=st.dictionaries(st.text(max_size=3), VALUES), window=st.integers(1, 9)
)
def test_a_window_of_any_size_reads_what_the_whole_holds(tmp_path_factory, values, others, window):
    path = tmp_path_factory.mktemp("stream") / "file.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "WINDOW", window)
        path.write_text(json.dumps(values, indent=1))
        assert list(stream.entries(path)) == values
        path.write_text(json.dumps({**others, "wanted": values, "after": 1}))
        assert list(stream.entries(path, "wanted")) == values and stream.value(path, "after") == 1
        for key, value in others.items():
            if not isinstance(value, list):
                assert stream.value(path, key) == value


@pytest.mark.parametrize("text", ['[{"a": 1}, {"b"', "[1 2]", '{"wanted": [1}', '{"wanted" [1]}', "", "[1,]"])
def test_what_is_cut_or_no_json_is_refused_by_name(tmp_path, text):
    path = tmp_path / "cut.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"cut\.json: "):
        list(stream.entries(path, "wanted" if text.startswith("{") else None))


def test_a_large_file_is_never_held(tmp_path):
    path, count = tmp_path / "large.json", 40_000
    with open(path, "w") as file:
        file.write('{"info": [], "annotations": [')
        file.write(",\n".join(json.dumps({"image_id": n, "caption": "x" * 400}) for n in range(count)))
        file.write("]}")
    tracemalloc.start()
    seen = Counter(len(entry["caption"]) for entry in stream.entries(path, "annotations"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == {400: count} and path.stat().st_size > 16 * 2**20 and peak < 8 * 2**20

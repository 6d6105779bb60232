"""Scores and pruning in C: those of the steps one by one, and the steps one by one where there is no compiler.

Shapes: B batch, H heads, N prunable tokens, L = N + 1, E width of a head, K learnable tokens.
"""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from madtp.method import compiled
from madtp.method.attention import AttentionScores, attend
from madtp.method.layout import RECTANGLE
from madtp.method.pruning import prune_tokens
from tests.golden.fill import seeded

needs_compiler = pytest.mark.skipif(compiled.library() is None, reason="no C compiler")
INFINITY = float("inf")


def heads_of(batch, heads, length, width):
    """Query, key and value as a tower's projection leaves them, [B, H, L, E]."""
    projected = 3 * seeded(1, batch, length, 3, heads, width).float()
    return projected.permute(2, 0, 3, 1, 4)


def masks(batch, heads, length):
    """None, padding, the future hidden as well, and the future by itself, but for every other head."""
    padding = torch.arange(length) < torch.tensor([[length - number % 2] for number in range(batch)])
    padding, past = padding[:, None, None], torch.ones(length, length, dtype=torch.bool).tril()
    return [None, padding, padding & past, past | (torch.arange(heads) % 2 == 1)[:, None, None]]


@needs_compiler
@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (2, 3, 50, 32), (3, 2, 33, 5), (1, 4, 7, 40)])
@pytest.mark.parametrize("kind", range(4))
@torch.inference_mode()
def test_attention_and_scores_are_those_of_the_steps_in_double_precision(shape, kind):
    query, key, value = heads_of(*shape)
    mask = masks(*shape[:3])[kind]
    assert compiled.serves(query) and not compiled.serves(query.double())
    output, scores = attend(query, key, value, mask, scores=True)
    expected, expected_scores = attend(query.double(), key.double(), value.double(), mask, scores=True)
    for one, exact in zip((output, *scores), (expected, *expected_scores), strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=3e-5)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("kind", range(4))
@torch.inference_mode()
def test_long_sequences_are_shared_out_among_threads(batch, threads, kind, monkeypatch):
    monkeypatch.setattr(compiled, "ALONE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    shape = batch, 2, 200, 24
    parts, mask = heads_of(*shape), masks(*shape[:3])[kind]
    output, *scores = compiled.attend(*parts, mask)
    expected, expected_scores = attend(*(part.double() for part in parts), mask, scores=True)
    for one, exact in zip((output, *scores), (expected, *expected_scores), strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-4)
    assert all(map(torch.equal, compiled.attend(*parts, mask), (output, *scores)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch, length", [(2, 1), (2, 2), (0, 5)])
@torch.inference_mode()
def test_where_there_is_nothing_to_prune_all_stays(dtype, batch, length):
    query, key, value = (part.to(dtype) for part in heads_of(batch, 2, length, 4))
    output, scores = attend(query, key, value, scores=True)
    assert output.shape == query.shape and scores.cls_attention.shape == (batch, length - 1)
    x, alignment = torch.zeros(batch, length, 4, dtype=dtype), torch.ones(batch, length - 1, 3, dtype=dtype)
    left, _, kept = RECTANGLE.prune(x, scores, alignment, 2.0)
    assert left is x and kept is None


@torch.inference_mode()
def test_what_no_step_takes_is_not_misread_either():
    """A mask that is no boolean, and parts of several types: an error, as of long sequences."""
    query, key, value = heads_of(1, 2, 5, 4)
    for given in ((query, key, value, torch.zeros(1, 1, 5, 5)), (query, key.double(), value, None)):
        with pytest.raises((TypeError, RuntimeError)):
            attend(*given, scores=True)


@needs_compiler
@torch.inference_mode()
def test_attention_takes_parts_that_lie_differently_in_memory():
    query, key, value = heads_of(2, 3, 9, 4)
    expected = compiled.attend(query, key, value, None)
    turned = [part.transpose(2, 3).contiguous().transpose(2, 3) for part in (query, key, value)]
    for parts in (turned, (query.contiguous(), key, turned[2])):
        torch.testing.assert_close(compiled.attend(*parts, None), expected)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    mask |= torch.eye(9, dtype=torch.bool)
    expected = compiled.attend(query, key, value, mask)
    wide = torch.stack([mask, ~mask], dim=-1)
    for one in (mask.transpose(2, 3).contiguous().transpose(2, 3), wide[..., 0]):
        assert all(map(torch.equal, compiled.attend(query, key, value, one), expected))


@needs_compiler
def test_weights_are_those_of_double_precision_down_to_the_smallest():
    logits = torch.linspace(-100, 0, 2001)
    found = compiled.class_attention(torch.ones(1, 1, 2001, 1), logits.view(1, 1, 2001, 1), None, 0)[0]
    torch.testing.assert_close(found.double(), logits.double().softmax(dim=0), rtol=1e-6, atol=2e-38)


@needs_compiler
@torch.inference_mode()
def test_what_is_far_from_the_largest_logit_gets_nothing():
    query, key, value = heads_of(1, 2, 6, 8)
    output, scores = attend(1000 * query, 1000 * key, value, scores=True)
    expected, expected_scores = attend(1000.0 * query.double(), 1000.0 * key.double(), value.double(), scores=True)
    for one, exact in zip((output, *scores), (expected, *expected_scores), strict=True):
        torch.testing.assert_close(one.double(), exact)


NAN = float("nan")
BROKEN = {  # which part, and where: sample, head, token, channel
    "a key": (1, (0, 1, 3, 2), NAN),
    "a query": (0, (0, 1, 3, 2), NAN),
    "the class token's query": (0, (0, 1, 0, 2), NAN),
    "a value": (2, (0, 1, 3, 2), NAN),
    "an infinite key": (1, (0, 1, 3, 2), INFINITY),
    "a key without end": (1, (0, 1, 3, slice(None)), -INFINITY),
    "what a mask hides": (1, (1, 1, 5, 2), NAN),
}


@needs_compiler
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("kind", [0, 1])
@torch.inference_mode()
def test_what_is_no_number_spreads_as_in_the_steps(broken, kind, monkeypatch):
    parts = [part.contiguous() for part in heads_of(2, 3, 6, 4)]
    which, place, value = broken
    parts[which][place] = value
    found = compiled.attend(*parts, masks(2, 3, 6)[kind])
    assert torch.cat([part.flatten() for part in found]).isnan().any() == (kind == 0 or place[0] == 0)
    monkeypatch.setattr(compiled, "library", lambda: None)
    output, scores = attend(*parts, masks(2, 3, 6)[kind], scores=True)
    for one, other in zip(found, (output, *scores), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("part", ["self_attention", "cls_attention", "alignment"])
@pytest.mark.parametrize("value", [NAN, INFINITY])
@torch.inference_mode()
def test_numbers_that_are_not_finite_are_left_to_the_steps(part, value):
    x, scores = seeded(1, 2, 9, 6).float(), seeded(2, 2, 2, 8).float().abs()
    given = {"self_attention": scores[0], "cls_attention": scores[1], "alignment": seeded(3, 2, 8, 4).float()}
    given[part].flatten()[5] = value
    assert compiled.prune(x, **given, temperature=2.0, min_keep=1, protected=None) is None
    scores = AttentionScores(given["self_attention"], given["cls_attention"])
    expected, kept = prune_tokens(x, scores, given["alignment"], 2.0)
    found, _, own = RECTANGLE.prune(x, scores, given["alignment"], 2.0)
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert (kept is None) == (own is None)


@needs_compiler
@pytest.mark.parametrize("temperature", [1e-3, 0.5, 2.0, 8.0, 100.0, INFINITY])
@pytest.mark.parametrize("tokens", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("min_keep", [1, 5])
@torch.inference_mode()
def test_prunes_what_the_steps_one_by_one_prune(temperature, tokens, protected, min_keep):
    batch, source = 3, torch.Generator().manual_seed(tokens)
    x = torch.randn(batch, tokens + 1, 6, generator=source)
    scores = AttentionScores(*torch.rand(2, batch, tokens, generator=source) / tokens)
    alignment = 1 + 3 * torch.randn(batch, tokens + 1, 4, generator=source)[:, 1:]
    place = torch.randint(tokens, (batch, 1), generator=source) if protected else None
    given = (x, scores, alignment, temperature, min_keep, place)
    expected, kept = prune_tokens(*given)
    assert compiled.serves(x)
    found, _, own = RECTANGLE.prune(*given)
    assert (own is None) == (kept is None)
    torch.testing.assert_close(found, expected)
    if kept is not None:
        assert own.rows.equal(kept.rows) and own.rows.dtype == torch.long


@needs_compiler
@torch.inference_mode()
def test_halves_from_mixed_precision_count_as_they_are():
    x, (sums, cls_attention) = seeded(1, 2, 9, 6).float(), seeded(2, 2, 2, 8).float().abs()
    given = x, AttentionScores(sums, cls_attention.bfloat16()), (5 * seeded(3, 2, 8, 4)).bfloat16(), 2.0
    expected, kept = prune_tokens(*given)
    found, _, own = RECTANGLE.prune(*given)
    assert own.rows.equal(kept.rows)
    torch.testing.assert_close(found, expected)


@needs_compiler
@torch.inference_mode()
def test_prunes_what_lies_in_memory_in_any_way():
    def turned(part):
        return part.transpose(0, 1).contiguous().transpose(0, 1)

    x, (sums, cls_attention), alignment = seeded(1, 2, 9, 6), seeded(2, 2, 2, 8).abs(), 5 * seeded(3, 2, 8, 4)
    given = *(part.float() for part in (x, sums, cls_attention, alignment)), 2.0, 1
    _, rows = compiled.prune(*given, None)
    gone = [min({*range(1, 9)} - {*own}) - 1 for own in rows.tolist()]  # and would not be if they were protected
    place = torch.tensor([[one, 0] for one in gone])
    expected = compiled.prune(*given, place[:, :1].contiguous())
    assert all(one + 1 in own for one, own in zip(gone, expected[1].tolist(), strict=True))
    others = compiled.prune(*map(turned, given[:4]), *given[4:], place[:, :1])
    assert all(map(torch.equal, others, expected))
    twice = torch.cat([given[3], given[3]], dim=2)[..., :4], torch.cat([given[3][:, :1], given[3]], dim=1)[:, 1:]
    for one in twice:  # its tokens, or its samples, lie further apart
        assert all(map(torch.equal, compiled.prune(*given[:3], one, *given[4:], place[:, :1]), expected))


@needs_compiler
@pytest.mark.parametrize("nearest", [[3, 0, 3, 0, 0, 3, 0, 0], [10, -9, 4, -5, 1, -1, 2, -1.9]])
@torch.inference_mode()
def test_importance_may_be_0_or_beyond_1(nearest):
    """Of all that is dropped, and where alignments add up to almost nothing."""
    nearest = torch.tensor([nearest], dtype=torch.float)
    attention = 0.1 * nearest.clamp(min=0, max=1)
    alignment = torch.stack([nearest, nearest - 1, nearest - 0.5], dim=2)
    given = seeded(1, 1, 9, 6).float(), AttentionScores(attention, attention), alignment, 2.0
    expected, kept = prune_tokens(*given)
    found, _, own = RECTANGLE.prune(*given)
    assert own.rows.equal(kept.rows)
    torch.testing.assert_close(found, expected)


@needs_compiler
@torch.inference_mode()
def test_equally_important_tokens_keep_their_order():
    x, alike = seeded(1, 1, 9, 4).float(), torch.ones(1, 8)
    alignment = seeded(2, 1, 8, 3).float().abs()
    alignment[..., 0] = 5.0  # the best of every token
    scores = AttentionScores(alike, torch.tensor([[0.3, 0.3, 0.1, 0.3, 0.1, 0.1, 0.3, 0.1]]))
    _, _, kept = RECTANGLE.prune(x, scores, alignment, 1.0)
    assert kept.rows.tolist() == [[0, 1, 2, 4, 7, 3]]


def test_serves_what_is_small_in_single_precision_and_without_gradients():
    x = torch.zeros(2, 50, 96)
    assert not compiled.serves(x)
    with torch.inference_mode():
        assert compiled.serves(x) == (compiled.library() is not None)
        assert (
            not compiled.serves(x.double()) and not compiled.serves(x.bfloat16()) and not compiled.serves(x.to("meta"))
        )
        assert not compiled.serves(torch.zeros(1, 577, 768))


def test_training_needs_no_compiler(monkeypatch):
    def ask():
        raise AssertionError("nobody should compile")

    monkeypatch.setattr(compiled, "library", ask)
    assert attend(*heads_of(1, 2, 5, 4), scores=True)[0].isfinite().all()


def nobody_at_home():
    raise RuntimeError("could not determine home directory")


@pytest.mark.parametrize("compiler, at_home", [("no-such-compiler", True), ("false", True), ("cc", False)])
@torch.inference_mode()
def test_without_a_compiler_the_steps_are_taken_one_by_one(compiler, at_home, monkeypatch, tmp_path):
    """Also where it fails, and where there is no folder to compile into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path) if at_home else "")
    monkeypatch.setattr(compiled.Path, "home", nobody_at_home)
    monkeypatch.setenv("CC", compiler)
    compiled.library.cache_clear()
    try:
        assert compiled.library() is None and compiled.most_attention() == compiled.ATTENTION
        assert not compiled.serves(torch.zeros(1, 3, 4))
        assert attend(*heads_of(1, 2, 5, 4), scores=True)[0].isfinite().all()
    finally:
        compiled.library.cache_clear()


@needs_compiler
def test_compiled_functions_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = compiled._compiled()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiled._compiled() == first and list(tmp_path.rglob("*")) == [tmp_path / "madtp", first]


def test_what_is_kept_is_named_by_all_that_it_was_made_of(monkeypatch, tmp_path):
    """Another release, or another machine that shares the folder, compiles anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "any")
    monkeypatch.setattr(compiled, "_compile", lambda command, made, halves: made.touch())
    another = tmp_path / "another.c"
    another.write_text("/* changed */")
    own = torch.backends.cpu.get_cpu_capability()
    changes = [
        (compiled, "SOURCES", [*compiled.SOURCES[:-1], another]),
        (compiled, "HEADERS", [another]),
        (compiled, "FLAGS", ("-O0",)),
        (compiled.platform, "platform", lambda: "another system"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "AVX512" if own == "AVX2" else "AVX2"),
    ]
    made = {compiled._compiled()}
    for changed in changes:
        with monkeypatch.context() as patch:
            patch.setattr(*changed)
            made.add(compiled._compiled())
    assert len(made) == 1 + len(changes) and all(file.is_file() for file in made)


@needs_compiler
@torch.inference_mode()
@pytest.mark.parametrize("answer", ["exit 1", "echo no library > $out; exit 0"])
def test_a_compiler_without_threads_serves_short_sequences(answer, monkeypatch, tmp_path):
    plain = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    compiler = tmp_path / "cc"
    asked = f'[ "$last" = -o ] && out="$one"; last="$one"; if [ "$one" = -fopenmp ]; then {answer}; fi'
    compiler.write_text(f'#!/bin/sh\nfor one; do {asked}; done\nexec {plain} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(compiler))
    expected = attend(*heads_of(2, 2, 9, 4), scores=True)
    compiled.library.cache_clear()
    try:
        assert not compiled.library().madtp_threads() and compiled.most_attention() == compiled.ATTENTION
        assert not compiled.serves_attention(torch.zeros(1, 2, 200, 64))
        torch.testing.assert_close(attend(*heads_of(2, 2, 9, 4), scores=True), expected)
    finally:
        compiled.library.cache_clear()


@needs_compiler
def test_a_compiler_may_be_in_a_folder_with_a_space(monkeypatch, tmp_path):
    folder = tmp_path / "some tools"
    folder.mkdir()
    (folder / "cc").symlink_to(next(filter(None, map(shutil.which, ("cc", "gcc", "clang")))))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CC", raising=False)
    assert compiled._compiled().is_file()


@needs_compiler
def test_several_processes_may_compile_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as processes:
        made = [processes.submit(compiled._compiled) for _ in range(2)]
    assert {one.result() for one in made} == {compiled._compiled()}
    assert list(tmp_path.rglob("*")) == [tmp_path / "madtp", compiled._compiled()]

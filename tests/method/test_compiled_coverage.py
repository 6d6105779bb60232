"""Coverage in C: what the steps one by one keep and merge, sample by sample, and the steps where C is not asked.

Shapes: B batch, H heads, L = F + N tokens, of which F in front stay, D width, n tokens kept.
"""

import pytest
import torch
from torch.func import grad, jvp, vmap

from madtp.method import compiled, coverage
from madtp.method.attention import attend_with_class, class_attention
from madtp.method.keep import Coverage
from madtp.method.merged import HIDDEN, shortened
from madtp.shared.layers import Guidance
from models.vit import VisionTransformer
from tests.golden.fill import seeded

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="no C compiler")


def example(tokens, prefix=1, batch=2, width=6, seed=0):
    """Tokens around some centres, what the class token pays to them, and sizes, of which masks hide some."""
    source = torch.Generator().manual_seed(100 * tokens + seed)
    centres = torch.randn(batch, 7, width, generator=source)
    x = centres[:, torch.arange(prefix + tokens) % 7] + 0.5 * torch.randn(
        batch, prefix + tokens, width, generator=source
    )
    sizes = torch.randint(1, 5, x.shape[:2], generator=source).float()
    sizes[0, -1] = sizes[-1, prefix] = HIDDEN
    return x + 0.3, torch.rand(batch, tokens, generator=source), sizes


def same(found, expected, rtol=1e-5, atol=1e-5):
    """The same rows and owners, and the same numbers to rounding."""
    assert found[2].equal(expected[2]) and found[3].equal(expected[3])
    assert found[2].dtype == found[3].dtype == torch.long
    for one, other in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


@pytest.fixture
def covered(monkeypatch):
    """Counts the calls of C."""
    calls, plain = [], compiled.cover
    monkeypatch.setattr(compiled, "cover", lambda *given: calls.append(1) or plain(*given))
    return calls


@pytest.mark.parametrize("tokens", [2, 3, 9, 33, 50, 196])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("keep_norm", [False, True])
@torch.inference_mode()
def test_it_keeps_and_merges_as_the_steps_do_in_double_precision(tokens, share, prefix, sized, keep_norm, covered):
    keep = min(max(1, round(share * tokens)), tokens - 1)
    x, attention, sizes = example(tokens, prefix)
    sizes = sizes if sized else None
    found = shortened(x, attention, sizes, prefix, keep, keep_norm)
    assert len(covered) == 1 and found[0].shape == (2, prefix + keep, 6)
    for sample in range(2):
        own = (None if one is None else one[sample : sample + 1].double() for one in (x, attention, sizes))
        same([one[sample : sample + 1] for one in found], shortened(*own, prefix, keep, keep_norm))
    assert len(covered) == 1


@torch.inference_mode()
def test_without_a_class_token_all_tokens_are_alike(covered):
    x, _, sizes = example(50, prefix=0)
    found = shortened(x, None, sizes, 0, 12)
    assert all(map(torch.equal, found, shortened(x, torch.full((2, 50), 0.5), sizes, 0, 12))) and len(covered) == 2


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("keep", [1, 4, 11, 30, 63])
def test_what_is_equally_good_is_taken_in_the_same_order(seed, keep, monkeypatch):
    """All numbers are sums of few powers of two, so that nothing is rounded and much is equal to the last bit."""
    source = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (1, 64, 4), generator=source) * 2.0 - 1
    places = torch.rand(1, 64, 6, generator=source).argsort(dim=2)[..., :4]  # of 6 channels, 4 are not 0
    x = torch.zeros(1, 64, 6).scatter(2, places, signs)
    attention = torch.randint(4, (1, 64), generator=source).float()
    attention[0, 0] += 256 - attention.sum()  # shares are exact
    sizes = 2.0 ** torch.randint(3, (1, 64), generator=source)
    with torch.inference_mode():
        found = shortened(x, attention, sizes, 0, keep)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "library", lambda: None)
            expected = shortened(x, attention, sizes, 0, keep)
        same(found, expected)
        chosen = shortened(x.bfloat16(), attention, sizes, 0, keep)  # halves, of which C makes the choice alone
        assert all(map(torch.equal, chosen[2:], expected[2:]))


@torch.inference_mode()
def test_without_attention_too(covered):
    x, attention, sizes = example(30)
    found, expected = (
        shortened(*given, 1, 9)
        for given in ((x, 0 * attention, sizes), (x.double(), 0 * attention.double(), sizes.double()))
    )
    same(found, expected)
    assert len(covered) == 1


@torch.inference_mode()
def test_copies_are_as_near_as_can_be_and_go_into_one(covered):
    x = seeded(0, 3, 9, 16).float().repeat_interleave(4, dim=1)[:, torch.randperm(36, generator=torch.manual_seed(1))]
    tokens, sizes, rows, owner = shortened(x, torch.ones(3, 36), None, 0, 9)
    assert covered and sizes.eq(4).all()
    torch.testing.assert_close(tokens.gather(1, owner.unsqueeze(2).expand_as(x)), x)


@torch.inference_mode()
def test_tokens_in_another_order_are_the_same_tokens(covered):
    x, attention, sizes = example(40, prefix=0)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    rows = shortened(x, attention, sizes, 0, 13)[2]
    permuted = shortened(x[:, order], attention[:, order], sizes[:, order], 0, 13)[2]
    assert len(covered) == 2 and order[permuted].sort(dim=1).values.equal(rows)


@torch.inference_mode()
def test_the_length_of_tokens_decides_nothing(covered):
    x, attention, sizes = example(40)
    small = 2.0**-30  # which rounds nothing
    tokens, *others = shortened(small * x, attention, sizes, 1, 13)
    expected, *same_others = shortened(x, attention, sizes, 1, 13)
    assert tokens.equal(small * expected) and all(map(torch.equal, others, same_others)) and len(covered) == 2


@torch.inference_mode()
def test_no_patch_is_lost_and_samples_do_not_see_each_other():
    x, attention, sizes = example(50, batch=4)
    found = shortened(x, attention, sizes, 1, 20)
    torch.testing.assert_close(found[1].sum(dim=1), sizes.sum(dim=1))
    means = (found[0] * found[1].unsqueeze(2)).sum(dim=1), (x * sizes.unsqueeze(2)).sum(dim=1)
    torch.testing.assert_close(*means)
    for sample in range(4):
        own = shortened(*(one[sample : sample + 1] for one in (x, attention, sizes)), 1, 20)
        assert all(one[0].equal(other[sample]) for one, other in zip(own, found, strict=True))


@torch.inference_mode()
def test_tokens_may_lie_in_any_way_in_memory(covered):
    x, attention, sizes = example(20)
    expected = shortened(x, attention, sizes, 1, 6)
    turned = [one.transpose(0, 1).contiguous().transpose(0, 1) for one in (x, attention, sizes)]
    wide = torch.cat([x, x], dim=2)[..., :6]
    for given in (turned, (wide, *turned[1:]), (x, attention.expand(2, -1), sizes)):
        assert all(map(torch.equal, shortened(*given, 1, 6), expected))
    assert len(covered) == 4


REFUSED = {
    "double precision": lambda x, attention, sizes: (x.double(), attention.double(), sizes.double()),
    "halves": lambda x, attention, sizes: (x.bfloat16(), attention.bfloat16(), sizes),
    "attention in halves": lambda x, attention, sizes: (x, attention.bfloat16(), sizes),
    "sizes in double precision": lambda x, attention, sizes: (x, attention, sizes.double()),
    "a subclass": lambda x, attention, sizes: (torch.nn.Parameter(x, requires_grad=False), attention, sizes),
    "many": lambda x, attention, sizes: (x.repeat(1, 1, 20000), attention, sizes),
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED)
@torch.no_grad()
def test_what_c_cannot_take_goes_step_by_step(given, covered):
    found = shortened(*given(*example(20)), 1, 6)
    assert not covered and found[0].isfinite().all() and found[2].shape == (2, 7)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
@torch.no_grad()
def test_mixed_precision_gradients_and_graphs_go_step_by_step(covered):
    x, attention, sizes = example(20)
    with torch.autocast("cpu", torch.bfloat16):
        assert shortened(x, attention, sizes, 1, 6)[0].dtype == torch.float32
    with torch.enable_grad():
        tokens = shortened(x.requires_grad_(), attention, sizes, 1, 6)[0]
        assert torch.autograd.grad(tokens.sum(), x)[0].isfinite().all()
    x = x.detach()
    traced = torch.jit.trace(lambda *given: shortened(*given, 1, 6)[:2], (x, attention, sizes), check_trace=False)
    others = example(20, seed=1)
    expected = shortened(*(one.double() for one in others), 1, 6)[:2]
    torch.testing.assert_close(traced(*others), expected, check_dtype=False, rtol=1e-5, atol=1e-5)
    traced = torch.compile(lambda *given: shortened(*given, 1, 6), backend="eager", fullgraph=True)
    same(traced(x, attention, sizes), shortened(x.double(), attention.double(), sizes.double(), 1, 6))
    assert not covered
    shortened(x, attention, sizes, 1, 6)
    assert covered


@torch.inference_mode()
def test_numbers_that_are_not_finite_are_left_to_the_steps():
    x, attention, sizes = example(20)
    for value in (float("nan"), float("inf"), 1e30):
        broken = x.clone()
        broken[1, 7, 2] = value
        assert compiled.cover(broken, attention, sizes, 1, 6) is None
        broken = attention.clone()
        broken[1, 7] = value
        assert (compiled.cover(x, broken, sizes, 1, 6) is None) == (value != 1e30)
    x[1, 7] = 1e30  # whose length is infinite, its direction none
    same(shortened(x, attention, sizes, 1, 6), shortened(x.clone(), attention, sizes.double(), 1, 6))
    x[1, 7] = 0  # as far from all others as from each
    assert compiled.cover(x, attention, sizes, 1, 6)[0].isfinite().all()


def pairs(tokens, batch=3):
    """Cosines of all pairs of tokens [B, N, N], and their importance [B, N]."""
    x, attention, _ = example(tokens, prefix=0, batch=batch, width=12)
    return coverage.similarity(x), coverage.importance(attention)


@pytest.mark.parametrize("tokens", [2, 3, 50, 300])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_choice_of_any_length_is_that_of_the_steps(tokens, share, threads, monkeypatch):
    keep = min(max(1, round(share * tokens)), tokens - 1)
    cosine, significance = pairs(tokens)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    kept, owner = compiled.choose(cosine, significance, keep)
    assert kept.equal(coverage.choose(cosine.double(), significance.double(), keep))
    assert owner.equal(coverage.owners(cosine.double(), kept))
    turned = cosine.transpose(0, 1).contiguous().transpose(0, 1)
    assert all(map(torch.equal, compiled.choose(turned, significance, keep), (kept, owner)))


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_tokens_all_around_are_chosen_as_by_the_steps(keep):
    """Some point away from all that are more important."""
    source = torch.Generator().manual_seed(keep)
    cosine = coverage.similarity(torch.randn(256, 8, 6, generator=source))
    significance = coverage.importance(torch.rand(256, 8, generator=source).square())
    kept, owner = compiled.choose(cosine, significance, keep)
    assert kept.equal(coverage.choose(cosine.double(), significance.double(), keep))
    assert owner.equal(coverage.owners(cosine.double(), kept))


@pytest.mark.parametrize("trains", [False, True])
def test_gradients_of_every_sample_by_torch_func_are_those_of_each_alone(trains):
    x, attention, _ = example(20)

    def loss(x, attention):
        return shortened(x.unsqueeze(0), attention.unsqueeze(0), None, 1, 5)[0].square().sum()

    with torch.set_grad_enabled(trains):
        torch.testing.assert_close(vmap(loss)(x, attention), torch.stack(list(map(loss, x, attention))))
    slow = [
        torch.autograd.grad(loss(own.requires_grad_(), paid), own)[0]
        for own, paid in zip(x.clone(), attention, strict=True)
    ]
    torch.testing.assert_close(vmap(grad(loss))(x, attention), torch.stack(slow))
    _, moved = jvp(lambda x: vmap(loss)(x, attention), (x,), (x,))
    torch.testing.assert_close(moved, (torch.stack(slow) * x).sum(dim=(1, 2)))


@pytest.mark.parametrize("trains", [False, True])
def test_no_sample_is_a_batch_as_well(trains):
    x, attention, sizes = (one[:0] for one in example(20))
    with torch.set_grad_enabled(trains):
        assert [len(one) for one in shortened(x, attention, sizes, 1, 5)] == [0] * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pairs_that_are_not_finite_are_left_to_the_steps_which_find_a_place_for_all(value):
    cosine, significance = pairs(40)
    for broken in (cosine, significance):
        before = broken[2].clone()
        broken[2].flatten()[7] = value
        assert compiled.choose(cosine, significance, 9) is None
        broken[2] = before
    x, attention, _ = example(40)
    x[1, 5:30] = value
    tokens, _, rows, owner = shortened(x.requires_grad_(), attention, None, 1, 9)
    assert tokens[0].isfinite().all() and not tokens[1].isfinite().all()
    assert 0 <= rows.min() and rows.max() <= 40 and 0 <= owner.min() and owner.max() < 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_chooses_in_c_and_learns_what_it_does_by_the_steps(dtype, monkeypatch):
    x, attention, sizes = example(60)
    x, calls, plain = x.requires_grad_(), [], compiled.choose
    monkeypatch.setattr(compiled, "choose", lambda *given: calls.append(1) or plain(*given))

    def taught():
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            found = shortened(x, attention, sizes, 1, 17)
        return *found, *torch.autograd.grad(found[0].square().sum(), x)

    found = taught()
    assert len(calls) == 1
    monkeypatch.setattr(compiled, "library", lambda: None)
    assert all(map(torch.equal, found, taught())) and len(calls) == 1


@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize("biased", [0, 1, 3])
@torch.inference_mode()
def test_the_class_token_s_attention_is_that_of_the_steps(prefix, biased, monkeypatch):
    """With a bias for none, for all alike, and for each of the samples."""
    query, key, _ = seeded(1, 3, 11, 3, 2, 40).float().permute(2, 0, 3, 1, 4)
    bias = seeded(2, biased, 1, 1, 11).float() if biased else None
    expected = class_attention(query.double(), key.double(), None if bias is None else bias.double(), prefix)
    turned = key.transpose(2, 3).contiguous().transpose(2, 3)
    calls, plain = [], compiled.class_attention
    monkeypatch.setattr(compiled, "class_attention", lambda *given: calls.append(1) or plain(*given))
    for keys in (key, key.contiguous(), turned):
        torch.testing.assert_close(class_attention(query, keys, bias, prefix).double(), expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == 3
    mask = torch.arange(11).expand(3, 1, 1, 11) < 7
    hidden = class_attention(query, key, mask, prefix)
    assert len(calls) == 3 and hidden[:, 7 - prefix :].eq(0).all()
    key[2, 1, 4] = float("nan")
    assert class_attention(query, key, bias, prefix).isnan().all(dim=1).tolist() == [False, False, True]


@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize("kind", ["plain", "biased", "alike", "masked"])
@torch.inference_mode()
def test_attention_and_what_the_class_token_pays_are_those_of_the_steps(prefix, kind, monkeypatch):
    parts = query, key, value = seeded(1, 3, 11, 3, 2, 40).float().permute(2, 0, 3, 1, 4)
    mask = torch.arange(11).expand(3, 1, 1, 11) < 7
    biases = seeded(2, 3, 1, 1, 11).float()
    bias = {"plain": None, "biased": biases, "alike": biases[:1], "masked": mask}[kind]
    exact = None if bias is None else mask if bias is mask else bias.double()
    calls, plain = [], compiled.attend_with_class
    monkeypatch.setattr(compiled, "attend_with_class", lambda *given: calls.append(1) or plain(*given))
    expected = attend_with_class(*(part.double() for part in parts), exact, prefix)
    for keys in (key, key.contiguous()):
        found = attend_with_class(query, keys, value, bias, prefix)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    assert len(calls) == 2 * (kind != "masked")
    key[2, 1, 4] = float("nan")
    output, paid = attend_with_class(query, key, value, bias, prefix)
    assert paid.isnan().any(dim=1).tolist() == [False, False, True]
    assert output.isnan().all(dim=(2, 3)).tolist() == [[False, False], [False, False], [False, True]]


@torch.inference_mode()
def test_a_tower_answers_as_it_does_step_by_step(covered, monkeypatch):
    vit = VisionTransformer(img_size=84, patch_size=12, embed_dim=96, depth=4, num_heads=3, sd_dim=96).eval()
    given = seeded(4, 2, 3, 84, 84).float(), Guidance.by(torch.zeros(1, 96), 1.5, False), None, Coverage(4)
    found, _ = vit.encode(*given)
    assert len(covered) == 4
    monkeypatch.setattr(compiled, "library", lambda: None)
    expected, _ = vit.encode(*given)
    assert len(covered) == 4 and found.layout.places.equal(expected.layout.places)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-4, atol=1e-4)

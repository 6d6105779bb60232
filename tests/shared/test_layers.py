"""The loop over layers, with a layer of the test's own: what is written down, summed, shortened, and made anew."""

import pytest
import torch
from torch import nn

from madtp.cost.trace import Trace
from madtp.method.keep import keep_batch
from madtp.method.layout import RECTANGLE, Rectangle, Sequences
from madtp.method.pruning import Kept
from madtp.shared.layers import Guidance, run_layers

DEPTH, BATCH, LENGTH, WIDTH = 3, 2, 7, 4


class Weighed(Rectangle):
    """A layout that carries how much each token stands for."""

    def __init__(self, weights):
        self.weights = weights


class Dropping(nn.Module):
    """Drops the token behind the class token; what it stood for goes to the one behind it."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.calls = 0

    def forward(self, x, layout, guidance, *others):
        self.calls += 1
        x, rows = x + self.linear(x).tanh(), torch.arange(x.shape[1])
        aligned = x.mean(dim=1, keepdim=True) if guidance.align else None
        if not guidance.prunes:
            return x, layout, aligned, None, *others
        kept = Kept(rows[rows != 1].expand(len(x), -1))
        if isinstance(layout, Weighed):
            weights = layout.weights.clone()
            weights[:, 2] += weights[:, 1]
            layout = Weighed(kept.gather(weights))
        return x[:, kept.rows[0]], layout, aligned, kept, *others


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.ModuleList(Dropping() for _ in range(DEPTH)).double()


@pytest.fixture
def x():
    return torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(layers, x, drops):
    """Tokens, and the sum of what the layers said of their alignment."""
    aligned = 0
    for layer in layers:
        x = x + layer.linear(x).tanh()
        aligned = aligned + x.mean(dim=1, keepdim=True)
        x = torch.cat([x[:, :1], x[:, 2:]], dim=1) if drops else x
    return x, aligned


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_alignment_and_trace(layers, x, temperature):
    trace, guidance = Trace(), Guidance(torch.ones(1, 1), temperature, align=True)
    passed = run_layers(layers, keep_batch(x), guidance, "toy", trace)
    tokens, aligned = by_hand(layers, x, temperature > 0)
    torch.testing.assert_close(passed.sequences.tokens, tokens)
    torch.testing.assert_close(passed.aligned, aligned)
    lost = int(temperature > 0)
    counts = [(row.entered, row.left, row.scored) for row in trace.layers["toy"]]
    assert counts == [(7 - lost * layer, 7 - lost * (layer + 1), temperature > 0) for layer in range(DEPTH)]
    assert all((row.kept is None) == (temperature == 0) for row in trace.layers["toy"])


def test_nothing_is_summed_that_nobody_wants(layers, x):
    assert run_layers(layers, keep_batch(x), Guidance(), "toy").aligned is None


def test_without_learnable_tokens_the_model_is_dense():
    assert not Guidance.by(None, 3.0, True).prunes and Guidance.by(torch.ones(1, 1), 3.0, True).prunes


def test_what_goes_along_is_shortened_as_the_tokens_are(layers, x):
    values, place = torch.arange(LENGTH).expand(BATCH, -1), torch.tensor([4, 6])
    passed = run_layers(layers, keep_batch(x), Guidance(torch.ones(1, 1), 1.0), "toy", along=(values, None, place))
    left, nothing, stands = passed.along
    assert left.tolist() == [[0, 4, 5, 6]] * BATCH and nothing is None and stands.tolist() == [1, 3]
    met = [[values.shape[1], int(place[0])] for (values, _, place) in passed.others]
    assert met == [[7, 4], [6, 3], [5, 2]], "what each layer was given"


def test_a_layout_may_carry_state_from_layer_to_layer(layers, x):
    sequences = Sequences(x, Weighed(torch.ones(BATCH, LENGTH)))
    passed = run_layers(layers, sequences, Guidance(torch.ones(1, 1), 1.0), "toy")
    assert passed.sequences.layout.weights.tolist() == [[1, 4, 1, 1]] * BATCH
    assert sequences.layout.weights.tolist() == [[1] * LENGTH] * BATCH


def test_inputs_are_made_when_a_layers_turn_comes(layers, x):
    done = lambda: [layer.calls for layer in layers]  # noqa: E731
    seen = run_layers(layers, keep_batch(x), Guidance(), "toy", inputs=((done(),) for _ in layers)).others
    assert seen == [[[0, 0, 0]], [[1, 0, 0]], [[1, 1, 0]]]


@pytest.mark.parametrize("checkpointed", range(DEPTH + 1))
def test_the_last_layers_are_made_anew_and_gradients_stay(layers, x, checkpointed):
    guidance = Guidance(torch.ones(1, 1), 1.0, align=True)
    gradients = []
    for number in (0, checkpointed):
        for layer in layers:
            layer.calls = 0
        passed = run_layers(layers, Sequences(x, RECTANGLE), guidance, "toy", checkpointed=number)
        loss = passed.sequences.tokens.square().sum() + passed.aligned.sum()
        gradients.append(torch.autograd.grad(loss, list(layers.parameters())))
    assert [layer.calls for layer in layers] == [1] * (DEPTH - checkpointed) + [2] * checkpointed
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("grad", [True, False])
def test_outside_of_training_no_layer_is_made_anew(layers, x, monkeypatch, grad):
    def never(*inputs, **options):
        raise AssertionError("recomputation prepared")

    monkeypatch.setattr("madtp.shared.layers.checkpoint", never)
    with torch.set_grad_enabled(grad):
        run_layers(layers.train(not grad), keep_batch(x), Guidance(), "toy", checkpointed=DEPTH)

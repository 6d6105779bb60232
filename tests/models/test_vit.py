"""The image encoder against timm's, and what pruning, checkpointing and stochastic depth may not change."""

import pytest
import timm.models.vision_transformer as theirs
import torch

from madtp.cost.trace import Trace
from madtp.method.keep import Coverage, keep_batch
from madtp.method.layout import RECTANGLE
from madtp.shared.layers import Guidance
from models.vit import Block, VisionTransformer
from tests.golden.fill import fill, seeded
from tests.kept import keeping, size
from tests.tiny import VIT, images


def build(image_size=64, **sizes):
    return fill(VisionTransformer(image_size, **{"sd_dim": 40} | VIT | sizes)).eval().double()


@pytest.mark.parametrize(
    "image_size, sizes",
    [
        (64, {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16}),
        (96, {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 12}),
        (32, {"embed_dim": 64, "depth": 1, "num_heads": 1, "patch_size": 8, "mlp_ratio": 2.0}),
    ],
)
def test_dense_equals_timm(image_size, sizes):
    ours = build(image_size, **sizes, sd_dim=sizes["embed_dim"])
    reference = theirs.VisionTransformer(image_size, num_classes=0, **sizes).eval().double()
    reference.load_state_dict(ours.state_dict())
    image = images(2, size=image_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)[0], reference.forward_features(image))
    assert reference.norm.eps == 1e-6 and ours.shape.length == reference.pos_embed.shape[1]


@pytest.mark.parametrize("align", [True, False])
def test_temperature_zero_equals_no_learnable_tokens(align):
    model, image = build(), images(2)
    dense, nothing = model(image)
    tokens, aligned = model(image, seeded(2, 6, 40).double(), temperature=0.0, align=align)
    assert tokens.equal(dense) and nothing is None
    assert (aligned is not None) == align
    assert model(image, None, temperature=4.0)[0].equal(dense)


@pytest.mark.parametrize("temperature", [1.0, 8.0, float("inf")])
def test_with_and_without_gradients_alike(temperature):
    """The attention map whole, or in blocks of queries."""
    model, image, space_dict = build(), images(3), seeded(2, 6, 40).double()
    trace = Trace()
    tokens, aligned = model(image, space_dict, temperature, trace=trace)
    assert any(layer.kept is not None for layer in trace.layers["image"])
    with torch.no_grad():
        torch.testing.assert_close(model(image, space_dict, temperature), (tokens, aligned))


def test_trace_tells_what_happened():
    model, trace = build(), Trace()
    tokens, _ = model(images(2), seeded(2, 6, 40).double(), 8.0, trace=trace)
    layers = trace.layers["image"]
    assert [layer.entered for layer in layers[1:]] == [layer.left for layer in layers[:-1]]
    assert (layers[0].entered, layers[-1].left) == (model.shape.length, tokens.shape[1])
    for layer in layers:
        assert layer.scored
        assert layer.left == (layer.entered if layer.kept is None else layer.kept.indices.shape[1] + 2)
    assert [(layer.entered, layer.left, layer.scored) for layer in trace.dense().layers["image"]] == [
        (17, 17, False)
    ] * 3


def gradients(model, image, temperature):
    space_dict = seeded(2, 6, 40).double().requires_grad_()
    tokens, aligned = model(image, space_dict, temperature)
    (tokens.square().mean() + aligned.square().mean()).backward()
    return [space_dict.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("temperature", [0.0, 8.0])
@pytest.mark.parametrize("checkpointed_layers", [1, 3])
def test_checkpointing_changes_no_gradient(monkeypatch, temperature, checkpointed_layers):
    recomputed = []
    original = torch.utils.checkpoint.checkpoint

    def counted(*args, **kwargs):
        recomputed.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr("madtp.shared.layers.checkpoint", counted)
    expected = gradients(build().train(), images(2), temperature)
    assert not recomputed
    found = gradients(build(checkpointed_layers=checkpointed_layers).train(), images(2), temperature)
    assert len(recomputed) == checkpointed_layers
    torch.testing.assert_close(found, expected)


def test_stochastic_depth_grows_from_zero_and_rests_in_evaluation():
    model = build(drop_path_rate=0.5)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.25, 0.5])
    image = images(4)
    assert model(image)[0].equal(build()(image)[0])
    torch.manual_seed(0)
    assert not torch.allclose(model.train()(image)[0], model(image)[0])
    still = build(drop_path_rate=0.0).train()
    assert still(image)[0].equal(build()(image)[0])


def test_what_stochastic_depth_passes_over_does_nothing():
    block, x = Block(32, 2, 4.0, 1e-6, sd_dim=32, drop_path=1.0).double(), images(2)[..., 0, :32]
    assert block.train()(x, RECTANGLE, Guidance())[0].equal(x)
    assert not torch.allclose(block.eval()(x, RECTANGLE, Guidance())[0], x)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("rule, amount", [("dense", 0.0), ("batch", float("inf")), ("coverage", 2.0)])
def test_a_layer_keeps_of_all_tokens_what_attention_needs_and_of_those_left_what_the_mlp_needs(rule, amount, amp):
    """Memory in training falls as cost does: nothing as wide as a token is kept twice, or only since tokens went."""
    batch, length, width, single, other = 2, 145, 64, 4, 2 if amp else 4  # bytes of a number, and where autocast rounds
    block = fill(Block(width, 2, 4.0, 1e-6, sd_dim=width, drop_path=0.0)).train()
    x, space_dict = seeded(1, batch, length, width).requires_grad_(), seeded(2, 2, width).requires_grad_()
    x, layout = (Coverage(3) if rule == "coverage" else keep_batch)(x)
    with keeping(space_dict, *block.parameters()) as kept, torch.autocast("cpu", torch.bfloat16, enabled=amp):
        output, *_, pruned = block(x, layout, Guidance(space_dict, amount, align=amount > 0))
    left = output.shape[1]
    assert (pruned is not None and 10 < left < length - 10) or rule == "dense"
    gone = {"batch": length - left + 1}.get(rule, 0)  # the gradient of their weights in the merged token takes them all
    attention, mlp = length * (single + 3 * other + other), left * (single + 4 * other)
    cast = [tensor for tensor in kept() if tensor.shape in ((width, width), (width,))]  # the output layer's own weights
    narrow = batch * length * 4 * single
    wide = sum(size(tensor) for tensor in kept() if size(tensor) > narrow) - sum(map(size, cast)) * amp
    assert wide == batch * width * (attention + mlp + gone * single)

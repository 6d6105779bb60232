"""Coverage in whole models: merging equal tokens changes nothing, nobody's company matters, and one sample by hand.

Shapes: B samples, N patches, D width, H heads.
"""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from madtp.cost.schedule import planned
from madtp.cost.trace import Trace
from madtp.method import compiled, coverage
from madtp.method.keep import Coverage
from madtp.shared.layers import Guidance
from models.blip_retrieval import gather_states
from tests.golden.fill import seeded
from tests.method.test_keep import MODELS, SAMPLES, infer, lefts, losses
from tests.tiny import images

DEPTH, PATCHES = 3, 16
AT_ONCE = 1e-9  # a schedule of this shape drops all that it drops in the first layer
RULE = Coverage(DEPTH)


@pytest.fixture(scope="module")
def models():
    return {name: make() for name, make in MODELS.items()}


@pytest.fixture(params=list(MODELS))
def task(request, models):
    return SimpleNamespace(name=request.param, model=models[request.param], image=images(2 * SAMPLES, seed=5))


@pytest.fixture
def repeated(task):
    """The model without positions, and pictures in which each of four patches stands four times."""
    visual = task.model.visual if task.name == "clip" else task.model.visual_encoder
    positions = visual.positional_embedding if task.name == "clip" else visual.pos_embed
    before = positions.detach().clone()
    with torch.no_grad():
        positions[..., 1:, :] = 0
    tiles = seeded(3, 2 * SAMPLES, 3, 4, 16, 16).double().repeat_interleave(4, dim=2)
    order = torch.randperm(PATCHES, generator=torch.Generator().manual_seed(1))
    grid = tiles[:, :, order].unflatten(2, (4, 4))  # [B, 3, 4, 4, 16, 16]
    yield SimpleNamespace(
        name=task.name, model=task.model, image=grid.permute(0, 1, 2, 4, 3, 5).reshape(-1, 3, 64, 64).contiguous()
    )
    with torch.no_grad():
        positions.copy_(before)


@pytest.mark.parametrize("amount", [0.0, 0.4, 2.0, math.inf])
def test_what_a_forward_pass_does_is_known_before(task, amount):
    rule = Coverage(DEPTH, 0.7)
    dense, trace = (infer(task, list(range(SAMPLES)), rule, some)[1] for some in (0.0, amount))
    counts = {tower: [layer[:3] for layer in layers] for tower, layers in trace.layers.items()}
    assert counts.pop("image") == [layer[:3] for layer in planned(rule.schedule(PATCHES), amount)]
    assert counts == {tower: [layer[:3] for layer in dense.layers[tower]] for tower in counts}


@pytest.mark.parametrize("keep_norm", [False, True])
def test_merging_equal_tokens_changes_no_output(repeated, keep_norm):
    everyone = list(range(SAMPLES))
    dense, _ = infer(repeated, everyone, RULE, 0.0)
    merged, trace = infer(repeated, everyone, Coverage(DEPTH, AT_ONCE, keep_norm), math.log(4))
    assert [layer.left for layer in trace.layers["image"]] == [5] * DEPTH
    torch.testing.assert_close(merged, dense, rtol=1e-9, atol=1e-9)


def test_merging_equal_tokens_changes_no_loss_and_no_gradient(repeated):
    if repeated.name in ("retrieval", "clip"):  # whose queues move on; their towers are the same
        return
    nothing_goes, everyone = 1e-9, list(range(SAMPLES))
    rules = (Coverage(DEPTH, AT_ONCE), nothing_goes), (Coverage(DEPTH, AT_ONCE), math.log(4))
    (whole, gradients), (merged, others) = (losses(repeated, everyone, *rule) for rule in rules)
    assert whole.keys() == merged.keys() == {"loss_task", "loss_sim"}
    for name, loss in whole.items():
        torch.testing.assert_close(merged[name], loss, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        if "pos_embed" not in name:  # whose copies are told apart again
            torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-8)


def test_a_sample_s_answer_does_not_depend_on_its_company(task):
    together, trace = infer(task, list(range(SAMPLES)), RULE, 1.2)
    assert trace.layers["image"][-1].left < 1 + PATCHES
    for sample in range(SAMPLES):
        alone, own = infer(task, [sample], RULE, 1.2)
        torch.testing.assert_close(together[[sample]], alone, rtol=0, atol=1e-10)
        assert lefts(own, 0, 1)["image"] == lefts(trace, sample, SAMPLES)["image"]


def test_texts_stay_whole(task):
    _, trace = infer(task, [0, 1], RULE, 2.0)
    for tower, layers in trace.layers.items():
        if tower != "image":
            assert all(layer.kept is None and not layer.scored for layer in layers)


def test_one_token_is_the_floor(task):
    _, trace = infer(task, [0, 1], RULE, math.inf)
    assert [layer.left for layer in trace.layers["image"]] == [2] * DEPTH


def by_hand(visual, image, rule, amount):
    """A picture through BLIP's image tower, token by token and head by head."""
    x = visual.patch_embed(image.unsqueeze(0))[0]
    x = torch.cat([visual.cls_token[0], x]) + visual.pos_embed[0]
    sizes = torch.ones(len(x), dtype=torch.float64)
    for layer, block in enumerate(visual.blocks):
        heads = block.attn.num_heads
        query, key, value = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).unbind(1)
        outputs, cls_rows = [], []
        for head in range(heads):
            logits = query[:, head] @ key[:, head].T / query.shape[-1] ** 0.5
            weights = sizes * logits.exp()  # attention counts a token as often as it has patches
            weights = weights / weights.sum(dim=1, keepdim=True)
            outputs.append(weights @ value[:, head])
            cls_rows.append(weights[0, 1:])
        x = x + block.attn.proj(torch.cat(outputs, dim=1))
        keep = coverage.left_by(PATCHES, amount, rule.shape, layer, DEPTH)
        if keep < len(x) - 1:
            cls = sum(cls_rows) / heads
            importance = (1 / len(cls) + cls / cls.sum()) / 2
            direction = F.normalize(x[1:], dim=-1)
            cosine = direction @ direction.T
            kept = coverage.choose(cosine.unsqueeze(0), importance.unsqueeze(0), keep)[0].tolist()
            groups = {i: [] for i in kept}
            for j in range(len(cosine)):
                groups[j if j in groups else max(kept, key=lambda i: float(cosine[i, j]))].append(1 + j)
            means = [(sizes[own, None] * x[own]).sum(dim=0) / sizes[own].sum() for own in groups.values()]
            if rule.keep_norm:
                lengths = [(sizes[own] * x[own].norm(dim=1)).sum() / sizes[own].sum() for own in groups.values()]
                means = [length * F.normalize(mean, dim=0) for mean, length in zip(means, lengths, strict=True)]
            x = torch.stack([x[0], *means])
            sizes = torch.stack([sizes[0], *(sizes[own].sum() for own in groups.values())])
        x = x + block.mlp(block.norm2(x))
    return visual.norm(x)


@pytest.mark.parametrize("keep_norm", [False, True])
@torch.no_grad()
def test_the_tower_is_what_it_is_by_hand(models, keep_norm):
    visual, image, rule = models["caption"].visual_encoder, images(3, seed=9), Coverage(DEPTH, 0.7, keep_norm)
    trace = Trace()
    states, _ = visual.encode(image, Guidance.by(models["caption"].space_dict, 1.5, False), trace, rule)
    for sample in range(3):
        torch.testing.assert_close(states.tokens[sample], by_hand(visual, image[sample], rule, 1.5))
    assert states.layout.sizes_of_tokens.sum(dim=1).tolist() == [1 + PATCHES] * 3


@torch.no_grad()
def test_sizes_go_where_their_tokens_go(models):
    model = models["caption"]
    states, _ = model.visual_encoder.encode(images(4), Guidance.by(model.space_dict, 1.5, False), None, RULE)
    sizes = states.layout.sizes_of_tokens
    first, second = states.chunk(2)
    assert torch.cat([first.layout.sizes_of_tokens, second.layout.sizes_of_tokens]).equal(sizes)
    assert states.take([2, 0]).layout.sizes_of_tokens.equal(sizes[[2, 0]])
    assert states.to("cpu").layout.sizes_of_tokens.equal(sizes)
    doubled = gather_states(states, lambda own: torch.cat([own, own]))
    assert doubled.layout.sizes_of_tokens.equal(sizes.repeat(2, 1)) and len(doubled.tokens) == 8


@pytest.mark.parametrize("name", ["retrieval", "clip"])
def test_retrieval_trains(models, name):
    model = models[name]
    model.keep = Coverage(DEPTH, 0.7)
    captions = (
        ["two cat", "a red circle", "a dog"] if name == "retrieval" else torch.tensor([[48, 5, 49] + [0] * 27] * 3)
    )
    torch.manual_seed(0)
    found = model(images(3), captions, 0.4, torch.arange(3), 1.0)
    sum(found.values()).backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    first = "visual_encoder.patch_embed.proj.weight" if name == "retrieval" else "visual.conv1.weight"
    assert gradients[first].any()
    model.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_half_precision_keeps_about_the_same(models, monkeypatch, dtype):
    model = models["retrieval"].float()
    model.keep = Coverage(DEPTH, 0.7)
    exact = model.encode_image(images(3).float(), 1.0)[1]
    monkeypatch.setattr(compiled, "library", lambda: None)  # step by step, to hear them
    similarities, similarity = [], coverage.similarity
    monkeypatch.setattr(coverage, "similarity", lambda x: similarities.append(similarity(x)) or similarities[-1])
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        rough = model.encode_image(images(3).float(), 1.0)[1]
    assert similarities and all(cosine.dtype == torch.float32 for cosine in similarities)
    models["retrieval"].double()
    assert F.cosine_similarity(exact, rough.float()).min() > 0.97

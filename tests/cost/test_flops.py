"""The cost formulas against fvcore, which counts what a traced model computes: dense and pruned."""

import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import nn

from clip.model import CLIP, Sizes
from madtp.cost import flops
from madtp.cost.trace import LayerTrace, Trace
from madtp.method import pruning
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from models.blip_retrieval import blip_retrieval
from models.blip_vqa import blip_vqa
from models.nlvr_encoder import FIRST_MERGED_LAYER
from models.vit import VisionTransformer
from tests.golden.fill import fill, seeded
from tests.tiny import BERT, CONFIG, STATEMENTS, VIT, build, images

# What fvcore does not count and need not, since nothing here multiplies matrices; anything else fails the test.
FREE = {
    *("add", "add_", "sub", "mul", "div", "pow", "sum", "mean", "amax", "amin", "argmax", "clamp", "clamp_min", "tril"),
    *("gelu", "sigmoid", "softmax", "log_softmax", "linalg_vector_norm", "cross_entropy_loss", "lt", "ne", "embedding"),
    *(
        "gather",
        "scatter",
        "index_select",
        "sort",
        "argsort",
        "pad",
        "unflatten",
        "expand_as",
        "where",
        "masked_fill",
        "fill_",
    ),
    *("ones_like", "new_ones", "new_zeros", "new_empty", "empty_like"),
}


class Counted(nn.Module):
    """Runs a model and returns its thresholds too: tracing would drop them as dead, since they end in a number."""

    def __init__(self, model, run, thresholds):
        super().__init__()
        self.model, self.run, self.thresholds = model, run, thresholds

    def forward(self, *inputs):
        self.thresholds.clear()
        return [self.run(self.model, *inputs, None), *self.thresholds]


@pytest.fixture
def count(monkeypatch):
    """`count(model, run, *inputs)` is fvcore's count of `run(model, *inputs, trace)`, and that run's trace."""
    thresholds, threshold = [], pruning.threshold

    def recorded(*args):
        thresholds.append(threshold(*args))
        return thresholds[-1]

    def attention_by_its_map(query, key, value, attn_mask=None, dropout_p=0.0):
        logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        logits = logits if attn_mask is None else logits.masked_fill(~attn_mask, float("-inf"))
        return logits.softmax(dim=-1) @ value

    monkeypatch.setattr(pruning, "threshold", recorded)
    # fvcore counts nothing for fused attention.
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention_by_its_map)

    @torch.no_grad()  # nor does it look into what has a backward pass of its own
    def counted(model, run, *inputs):
        trace = Trace()
        run(model, *inputs, trace)
        analysis = FlopCountAnalysis(Counted(model, run, thresholds), inputs).tracer_warnings("none")
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        total = analysis.total()
        unknown = {name.removeprefix("aten::") for name in analysis.unsupported_ops()}
        assert unknown <= FREE, unknown - FREE
        return total, trace

    return counted


def assert_pruned(trace, temperature, *towers):
    """Guards the comparison: a high temperature has to prune in each of the towers, T = 0 nowhere."""
    for tower in towers:
        assert any(layer.kept is not None for layer in trace.layers[tower]) == (temperature > 0)
    assert trace.dense().layers == trace.layers or temperature > 0


temperatures = pytest.mark.parametrize("temperature", [0.0, 8.0, float("inf")])


@temperatures
@pytest.mark.parametrize("sd_dim, image_size, mlp_ratio", [(40, 64, 4.0), (32, 96, 2.5)])
def test_vision_transformer(count, temperature, sd_dim, image_size, mlp_ratio):
    model = fill(VisionTransformer(image_size, sd_dim=sd_dim, mlp_ratio=mlp_ratio, **VIT)).eval().double()
    space_dict = seeded(2, 6, sd_dim).double()

    def run(model, image, trace):
        return model(image, space_dict, temperature, align=False, trace=trace)[0]

    total, trace = count(model, run, images(1, size=image_size))
    assert flops.vision(model.shape, trace.layers["image"], 6) == total
    assert_pruned(trace, temperature, "image")


@temperatures
def test_nlvr(count, temperature):
    model = build(blip_nlvr, {"med_config": BERT | {"num_hidden_layers": FIRST_MERGED_LAYER + 2}})

    def run(model, image, trace):
        return model(image, STATEMENTS[2:], temperature=temperature, train=False, trace=trace)

    total, trace = count(model, run, images(2))
    shapes = model.visual_encoder.shape, model.text_encoder.shape
    assert flops.nlvr(*shapes, trace.layers, model.num_learnable, FIRST_MERGED_LAYER) == total
    assert_pruned(trace, temperature, "image", "text")


@temperatures
def test_caption(count, temperature):
    model = build(blip_decoder)

    def run(model, image, trace):
        return model(image, ["a picture of two cat"], temperature, train=False, trace=trace)["loss_task"]

    total, trace = count(model, run, images(1))
    shapes = model.visual_encoder.shape, model.text_decoder.bert.shape
    assert flops.caption(*shapes, trace.layers, model.num_learnable) == total
    assert_pruned(trace, temperature, "image")


@temperatures
def test_vqa(count, temperature):
    model = build(blip_vqa)

    def run(model, image, trace):
        guidance = {"space_dict": model.space_dict, "temperature": temperature, "trace": trace}
        states, _ = model.visual_encoder(image, align=False, **guidance)
        text = model.tokenize(STATEMENTS[1:2], "[ENC]")
        question = model.text_encoder(text.input_ids, text.attention_mask, states=states, **guidance)
        answer = model.encode_answers(["two cat"])
        context = {"states": question.states, "states_mask": question.mask, "trace": trace}
        return model.text_decoder(answer.input_ids, answer.attention_mask, **context)[0]

    total, trace = count(model, run, images(1))
    shapes = model.visual_encoder.shape, model.text_encoder.shape
    assert flops.vqa(*shapes, trace.layers, model.num_learnable) == total
    assert_pruned(trace, temperature, "image", "text")


@temperatures
def test_retrieval(count, temperature):
    model = build(lambda **sizes: blip_retrieval(embed_dim=24, queue_size=4, **sizes))

    def run(model, image, trace):
        text = model.encode_captions(STATEMENTS[2:])
        states, image_feature = model.encode_image(image, temperature, trace)
        text_feature = model.encode_text(*text, temperature, trace)
        return image_feature, text_feature, model.match(*text, states, temperature=temperature, trace=trace)

    total, trace = count(model, run, images(1))
    shapes = model.visual_encoder.shape, model.text_encoder.shape
    assert flops.retrieval(*shapes, trace.layers, model.num_learnable, 24) == total
    assert_pruned(trace, temperature, "image", "text", "multimodal")


@temperatures
def test_clip(count, temperature):
    model = fill(CLIP(Sizes(24, 64, 3, 64, 16, 30, 50, 128, 3), sd_num=6, sd_dim=40)).eval().double()
    text = torch.tensor([[48, 3, 49, *[0] * 27]])

    def run(model, image, trace):
        return model.encode_image(image, temperature, trace), model.encode_text(text, temperature, trace)

    total, trace = count(model, run, images(1))
    shapes = model.visual.shape, model.text_shape
    assert flops.clip(*shapes, trace.layers, model.num_learnable, 24) == total
    assert_pruned(trace, temperature, "image", "text")


def test_the_paper_s_dense_models_are_printed_at_once_and_without_torch():
    code = "import sys; from madtp.__main__ import main"
    code += "; assert main(['flops']) == 0 and 'torch' not in sys.modules"
    before = getrusage(RUSAGE_CHILDREN)
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    after = getrusage(RUSAGE_CHILDREN)
    lines = {"nlvr 132.540715 GFLOPs", "caption 65.719562 GFLOPs", "vqa 186.121346 GFLOPs"}
    assert lines <= set(output.splitlines())
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1  # seconds of the processor


def test_cost_of_the_paper_s_conventions():
    """Retrieval as the paper gives it, to one digit."""
    table = flops.paper_table()
    assert table["retrieval"] == pytest.approx(153.2, abs=0.05)
    assert table["retrieval_clip"] == pytest.approx(395.7, abs=0.05)


@pytest.mark.parametrize("class_token", [True, False])
def test_coverage_costs_pairs_of_patches_whatever_stands_in_front(class_token):
    for prefix, left in ((1, 9), (5, 9), (5, 20)):
        shape = flops.TowerShape(8, 32.0, 12, prefix, class_token)
        layers = ([LayerTrace(prefix + 20, prefix + left, scored, rule="coverage")] for scored in (True, False))
        pruned, dense = (flops.tower(shape, rows) for rows in layers)
        pairs = 20 * 20 + 20 if left < 20 else 0  # similarities, and the means
        assert pruned - dense == 8 * (pairs + 20 * class_token)


def test_learnable_tokens_cost_nothing_at_temperature_zero():
    shape = flops.VisionShape(64, width=32, depth=3, sd_dim=CONFIG["sd_dim"])
    layers = flops.dense_layers(3, shape.length)
    assert flops.vision(shape, layers, 0) == flops.vision(shape, layers, 1000)

"""The rule `sample`: whatever the company, a sample gets what the rule `batch` gives it alone.

The slow side runs every sample by itself under the rule `batch`, which golden values hold elsewhere. The fast side
packs them for inference and masks them for training.
"""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench_single import Steps
from clip.model import Sizes
from clip.retrieval import ClipRetrieval
from compress_caption_dtp import Caption
from compress_nlvr_dtp import NLVR
from compress_retrieval_clip_dtp import RetrievalClip
from compress_retrieval_dtp import RetrievalCOCO
from compress_vqa_dtp import VQA
from madtp.cost.trace import Trace
from madtp.method.keep import KEEP, keep_batch, keep_sample
from madtp.method.layout import ALONE, RECTANGLE, Masked
from madtp.method.packed import Packed
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from models.blip_retrieval import blip_retrieval
from models.blip_vqa import blip_vqa
from tests.golden.fill import fill
from tests.tiny import STATEMENTS, build, images

SAMPLES = 5
TEXTS = [STATEMENTS[index % 3] + " and a cat" * (index // 3) for index in range(SAMPLES)]
ANSWERS = ["red", "two cat", "a dog and a man", "left of the square", "blue"]
TEMPERATURES = [1.0, 4.0, 30.0]


def clip_model():
    return fill(ClipRetrieval(Sizes(24, 64, 3, 64, 16, 30, 50, 128, 3), 6, 40, queue_size=8)).eval().double()


def clip_text():
    """Texts of different lengths, end token 49."""
    rows = [[48, *range(3, 3 + length), 49] for length in (1, 4, 2, 9, 6)]
    return torch.tensor([row + [0] * (30 - len(row)) for row in rows])


MODELS = {
    "nlvr": lambda: build(blip_nlvr),
    "caption": lambda: build(blip_decoder),
    "vqa": lambda: build(blip_vqa),
    "retrieval": lambda: build(lambda **sizes: blip_retrieval(embed_dim=24, queue_size=8, **sizes)),
    "clip": clip_model,
}


@pytest.fixture(scope="module")
def models():
    return {name: make() for name, make in MODELS.items()}


@pytest.fixture(params=list(MODELS))
def task(request, models):
    """A model with inputs, whose rule of keeping can be chosen."""
    return SimpleNamespace(name=request.param, model=models[request.param], image=images(2 * SAMPLES, seed=5))


def infer(task, samples, keep, temperature):
    """What inference says of some samples by a rule or its name, one row for each, and the trace."""
    model, trace = task.model, Trace()
    model.keep = KEEP.get(keep, keep)
    image, texts = task.image[samples], [TEXTS[sample] for sample in samples]
    with torch.no_grad():
        if task.name == "nlvr":
            both = torch.cat([image, task.image[[sample + SAMPLES for sample in samples]]])
            return model(both, texts, temperature=temperature, train=False, trace=trace), trace
        if task.name == "caption":
            states, _ = model.encode(image, temperature, trace=trace)
            text = model.tokenize(["a picture of two cat"] * len(samples), "[DEC]")
            return model.text_decoder(text.input_ids, text.attention_mask, states=states)[0], trace
        if task.name == "vqa":
            states, _ = model.encode(image, temperature, trace=trace)
            text = model.tokenize(texts, "[ENC]", max_length=35)
            guidance = {"space_dict": model.space_dict, "temperature": temperature, "trace": trace, "keep": model.keep}
            question = model.text_encoder(text.input_ids, text.attention_mask, states=states, **guidance)
            answer = model.encode_answers(["two cat"] * len(samples))
            context = {"states": question.sequences, "states_mask": question.mask}
            return model.text_decoder(answer.input_ids, answer.attention_mask, **context)[0], trace
        if task.name == "retrieval":
            text = model.encode_captions(texts)
            states, feature = model.encode_image(image, temperature, trace)
            other = model.encode_text(*text, temperature, trace)
            return torch.cat([feature, other, model.match(*text, states, temperature, trace)], dim=1), trace
        text = clip_text()[samples]
        features = model.encode_image(image, temperature, trace), model.encode_text(text, temperature, trace)
        return torch.cat(features, dim=1), trace


def close(ours, slow):
    torch.testing.assert_close(ours, slow, rtol=0, atol=1e-10)


def lefts(trace, sample, count):
    """Tokens left of one sample, tower by tower and layer by layer."""
    return {
        tower: [int(row.left if isinstance(row.left, int) else row.left.reshape(-1, count)[0, sample]) for row in rows]
        for tower, rows in trace.layers.items()
    }


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_inference_equals_every_sample_alone(task, temperature):
    everyone = list(range(SAMPLES))
    together, trace = infer(task, everyone, "sample", temperature)
    left = []
    for sample in everyone:
        alone, own_trace = infer(task, [sample], "batch", temperature)
        close(together[[sample]], alone)
        left.append(lefts(own_trace, 0, 1))
        assert lefts(trace, sample, SAMPLES) == left[-1]
        close(infer(task, [sample], "sample", temperature)[0], alone)
    assert temperature < 30 or any(one != left[0] for one in left)  # they do keep different numbers


def test_the_cost_of_every_sample_is_that_of_it_alone(task):
    cost = {
        "nlvr": NLVR, "caption": Caption, "vqa": VQA, "retrieval": RetrievalCOCO, "clip": RetrievalClip
    }[task.name]().cost  # fmt: skip
    _, trace = infer(task, list(range(SAMPLES)), "sample", 30.0)
    alone = [cost(task.model, infer(task, [sample], "batch", 30.0)[1]) for sample in range(SAMPLES)]
    assert cost(task.model, trace).tolist() == pytest.approx(alone, rel=1e-12)
    assert len(set(alone)) > 1
    dense = cost(task.model, trace.dense())
    assert dense == pytest.approx(np.broadcast_to(dense, SAMPLES)) and (dense > alone).all()


def test_permuting_and_splitting_change_nothing(task):
    whole, _ = infer(task, [0, 1, 2, 3, 4], "sample", 8.0)
    order = [3, 0, 4, 2, 1]
    permuted, _ = infer(task, order, "sample", 8.0)
    close(permuted, whole[order])
    parts = [infer(task, part, "sample", 8.0)[0] for part in ([0, 1], [2], [3, 4])]
    close(torch.cat(parts), whole)


@pytest.mark.parametrize("temperature", [0.0, 8.0])
def test_generated_texts_and_answers_are_those_of_every_sample_alone(models, temperature):
    image = images(SAMPLES, seed=5)

    def each(model, answer):
        model.keep = KEEP["batch"]
        alone = [answer(slice(sample, sample + 1)) for sample in range(SAMPLES)]
        model.keep = KEEP["sample"]
        together = answer(slice(None))
        assert [one for answers in alone for one in answers] == list(together)

    limits = {"num_beams": 2, "max_length": 12, "temperature": temperature}
    each(models["caption"], lambda part: models["caption"].generate(image[part], **limits))
    vqa = models["vqa"]
    candidates = vqa.encode_answers(ANSWERS)
    arguments = {"temperature": temperature, "train": False}
    with torch.no_grad():
        each(vqa, lambda part: vqa(image[part], TEXTS[part], candidates, k_test=3, **arguments).tolist())
        each(vqa, lambda part: vqa(image[part], TEXTS[part], inference="generate", **arguments))


def losses(task, samples, keep, temperature):
    """Training losses of some samples, and their gradients, from a model whose queue and twins stand still."""
    model, image = task.model, task.image[samples]
    model.keep = KEEP.get(keep, keep)
    model.zero_grad()
    texts = [TEXTS[sample] for sample in samples]
    if task.name == "nlvr":
        both = torch.cat([image, task.image[[sample + SAMPLES for sample in samples]]])
        found = model(both, texts, torch.tensor([sample % 2 for sample in samples]), temperature)
    elif task.name == "caption":
        found = model(image, ["a picture of two cat"] * len(samples), temperature)
    else:
        answers = {"n": [1] * len(samples), "weights": torch.ones(len(samples)).double()}
        found = model(image, texts, [ANSWERS[sample] for sample in samples], temperature, **answers)
    sum(found.values()).backward()
    gradients = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
    return {name: loss.detach() for name, loss in found.items()}, gradients


@pytest.mark.parametrize("temperature", [4.0, 30.0])
@pytest.mark.parametrize("name", ["nlvr", "caption", "vqa"])
def test_training_losses_and_gradients_are_means_over_samples_alone(models, name, temperature):
    task = SimpleNamespace(name=name, model=models[name], image=images(2 * SAMPLES, seed=5))
    together, gradients = losses(task, list(range(SAMPLES)), "sample", temperature)
    alone = [losses(task, [sample], "batch", temperature) for sample in range(SAMPLES)]
    for loss, value in together.items():
        close(value, sum(found[loss] for found, _ in alone) / SAMPLES)
    for parameter, gradient in gradients.items():
        slow = sum(found[parameter] for _, found in alone) / SAMPLES
        torch.testing.assert_close(gradient, slow, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["retrieval", "clip"])
def test_momentum_towers_keep_each_sample_s_own_too(models, name):
    """What goes into the queue, and the similarity losses, are those of every sample alone."""
    model, image = models[name], images(SAMPLES, seed=5)
    captions = TEXTS if name == "retrieval" else clip_text()
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def step(part, keep):
        model.load_state_dict(state)
        model.keep = KEEP[keep]
        found = model(image[part], captions[part], 0.4, torch.arange(SAMPLES)[part], 8.0)
        count = len(image[part])
        queues = torch.cat([model.image_queue[:, :count], model.text_queue[:, :count]])
        return {key: found[key].detach() for key in ("loss_sim", "loss_sim_m")}, queues.T.clone()

    together, queues = step(slice(None), "sample")
    alone = [step(slice(sample, sample + 1), "batch") for sample in range(SAMPLES)]
    model.load_state_dict(state)
    close(queues, torch.cat([queue for _, queue in alone]))
    for loss, value in together.items():
        close(value, sum(found[loss] for found, _ in alone) / SAMPLES)


def test_what_is_prepared_for_and_when():
    """Gradients or aligned features: a mask. Neither: packed. The rule `batch`, and one sample alone: as it is."""
    x, own = torch.randn(2, 4, 3), torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    assert isinstance(keep_sample(x, own).layout, Masked) and not isinstance(keep_sample(x, own).layout, Packed)
    assert keep_batch(x, own).layout is RECTANGLE and keep_batch(x, own).tokens is x
    with torch.no_grad():
        packed = keep_sample(x, own)
        assert packed.layout.counts == [4, 2] and packed.tokens.equal(torch.cat([x[0], x[1, :2]]).unsqueeze(0))
        assert type(keep_sample(x, own, align=True).layout) is Masked
        for alone in (keep_sample(x[:1], own[:1]), keep_sample(x[:1]), keep_sample(x, together=2)):
            assert alone.layout is ALONE and alone.tokens.data_ptr() == x.data_ptr()
        padded = keep_sample(x[1:], own[1:])
        assert padded.layout.counts == [2] and padded.tokens.equal(x[1:, :2])


@pytest.mark.parametrize("keep", KEEP)
def test_no_images_are_a_batch_as_well(models, keep):
    for name in ("caption", "clip"):
        models[name].keep = KEEP[keep]
    with torch.no_grad():
        states, _ = models["caption"].encode(images(2, seed=5)[:0], 8.0)
        assert len(states.first) == 0 == len(models["clip"].encode_image(images(2, seed=5)[:0], 8.0))


@pytest.mark.parametrize("temperature", [0.0, 8.0])
def test_a_sample_alone_takes_no_more_steps_than_by_the_rule_batch(task, temperature):
    def steps(keep):
        with Steps() as launched:
            infer(task, [0], keep, temperature)
        return launched.count

    assert 0 < steps("sample") <= steps("batch")


@torch.no_grad()
@pytest.mark.parametrize("counts", [[5, 2, 5, 1], [4, 4, 4]])
def test_merging_in_one_padded_call_equals_sample_by_sample(counts):
    torch.manual_seed(0)
    layout, tokens = Packed(counts, torch.device("cpu")), torch.randn(1, sum(counts), 6, dtype=torch.float64)
    own = layout.inside[:, 1:]
    weights = torch.rand(own.shape, dtype=torch.float64) * own

    class OnAnAccelerator(torch.Tensor):
        is_cuda = True

    padded = layout._merged(tokens.as_subclass(OnAnAccelerator), weights, own)
    close(padded.as_subclass(torch.Tensor), layout._merged(tokens, weights, own))


@torch.no_grad()
def test_padded_attention_equals_sample_by_sample():
    """What an accelerator does in one masked call: self-attention with its scores, and attention across."""
    torch.manual_seed(0)
    counts, readers = [5, 2, 5, 3], [3, 4, 1, 2]
    layout, others = Packed(counts, torch.device("cpu")), Packed(readers, torch.device("cpu"))
    query, key, value = torch.randn(3, 1, 2, sum(counts), 4, dtype=torch.float64)
    hidden = torch.arange(5) < torch.tensor([[4], [1], [5], [2]])  # padding of a text's own
    for mask, causal in product((None, hidden), (False, True)):
        output, scores = layout.attend(query, key, value, mask, causal, scores=True)
        padded, padded_scores = layout._attend_padded(query, key, value, mask, causal, True)
        close(padded, output)
        for one, other in zip(padded_scores, scores, strict=True):
            close(one.where(layout.inside[:, 1:], 0), other)
    across = torch.randn(1, 2, sum(readers), 4, dtype=torch.float64)
    padded_inputs = others._padded(across), layout._padded(key), layout._padded(value)
    padded = F.scaled_dot_product_attention(*padded_inputs, layout.inside[:, None, None, :])
    close(others._unpadded(padded), layout.across(across, key, value, readers))

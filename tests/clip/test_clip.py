"""CLIP against open_clip, and what pruning, training and evaluation may not change."""

import json
import math

import numpy as np
import open_clip
import pytest
import torch

from clip import available_models, tokenize
from clip.clip import preprocess
from clip.model import CLIP, Sizes
from clip.retrieval import LARGEST_SCALE, ClipRetrieval
from compress_retrieval_clip_dtp import RetrievalClip
from madtp.cost.measure import CalibrationSample
from madtp.cost.trace import Trace
from madtp.method.layout import Rectangle, Sequences
from madtp.run.engine import evaluate, main, prepare
from madtp.run.flags import parse
from madtp.scoring.metrics import Matches, retrieval_recall, similarity_recall
from tests.golden.fill import fill
from tests.miniature import make_data, write_config
from tests.run.test_distributed import assert_same_scores, common, launch
from tests.tiny import images
from utils import UserError

END = 49
SIZES = Sizes(
    embed_dim=24,
    image_resolution=64,
    vision_layers=3,
    vision_width=64,
    vision_patch_size=16,
    context_length=30,
    vocab_size=END + 1,
    transformer_width=128,
    transformer_layers=3,
)
TEXTS = [[3, 7], [5, 5, 5, 5, 5, 5, 2, 1], [9, 8, 7, 6, 5]]


def words(*texts, length=30):
    """Token ids of texts that are given without their start and end."""
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text) + 2] = torch.tensor([END - 1, *text, END])
    return ids


def build(model=CLIP, **sizes):
    return fill(model(SIZES, sd_num=6, sd_dim=40, **sizes)).eval().double()


def train(**sizes):
    model = build(ClipRetrieval, queue_size=8, **sizes)
    model.copy_params()
    return model.train()


# The towers.


@pytest.mark.parametrize("width, depth, patch_size, text_width", [(128, 2, 16, 64), (64, 3, 8, 128)])
@torch.no_grad()
def test_dense_equals_open_clip(width, depth, patch_size, text_width):
    torch.manual_seed(0)
    theirs = open_clip.CLIP(
        48,
        {"layers": depth, "width": width, "head_width": 64, "patch_size": patch_size, "image_size": 48},
        {"context_length": 20, "vocab_size": 50, "width": text_width, "heads": text_width // 64, "layers": 2},
        quick_gelu=True,
    )
    theirs = theirs.eval().double()
    ours = CLIP(Sizes(48, 48, depth, width, patch_size, 20, 50, text_width, 2), sd_num=6, sd_dim=40).eval().double()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unexpected and all("query_model" in key or key == "space_dict" for key in missing)
    image, text = images(3, size=48), words(*TEXTS, length=20)
    torch.testing.assert_close(ours.encode_image(image), theirs.encode_image(image))
    torch.testing.assert_close(ours.encode_text(text), theirs.encode_text(text))


@pytest.mark.parametrize("temperature", [0.0, 4.0, math.inf])
def test_with_and_without_gradients_alike(temperature):
    """The attention map whole, or in blocks of queries."""
    model, image, text = build(), images(3), words(*TEXTS)
    with_gradients = model.encode_image(image, temperature), model.encode_text(text, temperature)
    with torch.no_grad():
        without = model.encode_image(image, temperature), model.encode_text(text, temperature)
    torch.testing.assert_close(with_gradients, without)


@torch.no_grad()
def test_what_follows_the_end_changes_no_dense_text():
    model, text = build(), words(*TEXTS)
    padded = text.clone()
    padded[text == 0] = 17
    torch.testing.assert_close(model.encode_text(padded), model.encode_text(text))


def positions_left(layers, length):
    """Which of the text's positions every layer keeps, by following them by hand; None is a merged token."""
    left = [list(range(length)) for _ in range(len(TEXTS))]
    for layer in layers:
        if layer.kept is not None:
            kept = layer.kept.indices.tolist()
            left = [[row[0], *(row[1:][index] for index in own), None] for row, own in zip(left, kept, strict=True)]
        yield left


@pytest.mark.parametrize("temperature", [1.0, 8.0, math.inf])
@torch.no_grad()
def test_the_end_of_a_text_stays_and_is_where_the_feature_is_read(temperature):
    model, text, trace, read = build(), words(*TEXTS), Trace(), []
    hook = model.ln_final.register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    tokens = []
    model.transformer.resblocks[-1].register_forward_hook(lambda _, __, output: tokens.append(output[0]))
    model.encode_text(text, temperature, trace)
    hook.remove()
    ends, layers = text.argmax(dim=1).tolist(), trace.layers["text"]
    assert any(layer.kept is not None for layer in layers)
    for left in positions_left(layers, text.shape[1]):
        for row, end in zip(left, ends, strict=True):
            order = [position for position in row if position is not None]
            assert order[0] == 0 and end in order and order == sorted(order)
    for row, end, states, feature in zip(left, ends, tokens[0], read[0], strict=True):
        assert states[row.index(end)].equal(feature)
    assert min(layer.left for layer in layers) - 2 > max(ends) + 2


@torch.no_grad()
def test_a_text_without_padding_is_not_pruned():
    trace = Trace()
    build().encode_text(words([4] * 28), math.inf, trace)
    assert [layer.left for layer in trace.layers["text"]] == [30] * 3


@torch.no_grad()
def test_an_image_keeps_two_tokens_at_least():
    kept = []
    for seed in range(8):
        trace = Trace()
        build().encode_image(images(1, seed), math.inf, trace)
        kept += [layer.kept.indices.shape[1] for layer in trace.layers["image"] if layer.kept is not None]
    assert kept and min(kept) >= 2


class Asked(Rectangle):
    """Tokens whose layers say how many each has to keep, and which one."""

    def __init__(self):
        self.limits = []

    def prune(self, x, scores, alignment, temperature, min_keep=1, protected=None):
        self.limits.append((min_keep, None if protected is None else protected.flatten().tolist()))
        return x, self, None


@torch.no_grad()
def test_an_image_keeps_two_tokens_and_a_text_all_up_to_its_end():
    model, image, text = build(), Asked(), Asked()
    model.keep = lambda x, *_: Sequences(x, image)
    model.encode_image(images(2), 8.0)
    model.keep = lambda x, *_: Sequences(x, text)
    ids = words(*TEXTS)
    model.encode_text(ids, 8.0)
    ends = ids.argmax(dim=1)
    assert image.limits == [(2, None)] * 3
    assert text.limits == [(int(ends.max()) + 3, (ends - 1).tolist())] * 3


# Texts.


def test_tokenize():
    (ids,) = tokenize("A dog, and  a cat", 10).tolist()
    assert (ids[0], ids[7:], max(ids)) == (49406, [49407, 0, 0], 49407)
    assert tokenize(["a dog, and a cat"], 10).tolist() == [ids]
    assert tokenize([]).shape == (0, 77)


def test_a_long_text():
    with pytest.raises(UserError, match="'a a a a' has 6 tokens, more than 5.*truncate=True"):
        tokenize("a a a a", 5)
    assert tokenize("a a a a", 5, truncate=True).tolist() == [[49406, 320, 320, 320, 49407]]
    assert "ViT-B/16" in available_models()


def test_the_transform_of_clip_s_users():
    from PIL import Image

    image = Image.fromarray(np.arange(60 * 90, dtype=np.uint8).reshape(60, 90))  # gray, 90 wide
    assert preprocess(32)(image).shape == (3, 32, 32)


# Training.


def losses(model, temperature, text=None):
    return model(images(3), words(*TEXTS) if text is None else text, 0.4, torch.tensor([1, 2, 1]), temperature)


@pytest.mark.parametrize("temperature", [0.0, 8.0])
def test_a_step(temperature):
    model = train()
    model.logit_scale.data.fill_(7.0)
    with torch.no_grad():
        model.visual.proj.add_(1.0)
    before, queue = model.visual_m.proj.clone(), model.image_queue.clone()
    result = losses(model, temperature)
    assert model.logit_scale.item() == pytest.approx(LARGEST_SCALE)
    torch.testing.assert_close(model.visual_m.proj, before + 0.005)
    assert model.ptr_queue.item() == 3 and model.idx_queue[0, :4].tolist() == [1, 2, 1, -100]
    assert not model.image_queue[:, :3].equal(queue[:, :3]) and model.image_queue[:, 3:].equal(queue[:, 3:])
    assert temperature == 0 or not result["loss_sim_m"].requires_grad, "the twins teach nothing"
    assert all(RetrievalClip.loss_weights[name] == (0.1 if "sim" in name else 1.0) for name in result)
    sum(loss for loss in result.values()).backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    guidance = {name for name, _ in model.named_parameters() if "query_model" in name or name == "space_dict"}
    online = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == (online if temperature > 0 else online - guidance)
    assert not any(name.split(".")[0].endswith("_m") for name in online)


@pytest.mark.parametrize("given, bounded", [(-3.0, 1.0), (2.0, math.exp(2)), (9.0, 100.0)])
def test_the_scale_of_similarities_stays_within_bounds(given, bounded):
    model = train()
    with torch.no_grad():
        model.logit_scale.fill_(given)
    assert model.bounded_scale().item() == pytest.approx(bounded)


def test_the_queue_holds_what_the_momentum_towers_say():
    model = train()
    with torch.no_grad():
        model.text_projection.add_(1.0)
    losses(model, 0.0)
    feature, _ = model.read_text(words(*TEXTS), 0.0, align=False, twin="_m")
    torch.testing.assert_close(model.text_queue[:, :3].T, feature / feature.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("temperature", [0.0, 8.0])
def test_checkpointing_changes_no_gradient(temperature):
    gradients = []
    for checkpointed_layers in (0, 2):
        model = train(checkpointed_layers=checkpointed_layers)
        sum(losses(model, temperature).values()).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*gradients)


def test_captions_or_their_ids():
    model = fill(ClipRetrieval(Sizes(24, 64, 1, 64, 16, 12, 49408, 64, 1), 6, 40, queue_size=4)).eval()
    captions, idx = ["a dog", "a very long text " * 9], torch.tensor([1, 2])
    ids = tokenize(captions, 12, truncate=True)
    by_ids, by_text = (model(images(2).float(), text, 0.0, idx) for text in (ids, captions))
    assert by_ids["loss_ita"] > 0 and by_text["loss_ita"] > 0
    assert model.encode_captions(captions).equal(ids)


def test_half_precision_trains_and_fills_the_queue():
    """On a CPU autocast leaves normalised features in half precision, while the queue holds single."""
    model = fill(ClipRetrieval(Sizes(24, 64, 1, 64, 16, 12, 49408, 64, 1), 6, 40, queue_size=4))
    ids, idx = torch.tensor([[5, 9, 49407, *[0] * 9]] * 2), torch.tensor([1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images(2).float(), ids, 0.4, idx, 3.0)
    sum(found.values()).backward()
    assert all(loss.isfinite() for loss in found.values())
    assert model.image_queue.dtype == torch.float32 and model.idx_queue[0, :2].tolist() == [1, 2]


# The task, in miniature.


@pytest.mark.parametrize("block", [3, 1000])
def test_recall_by_blocks_equals_recall_of_the_whole(block):
    torch.manual_seed(0)
    image, text = torch.randn(10, 4), torch.randn(25, 4)
    owners = torch.arange(10).repeat_interleave(torch.tensor([1, 4] * 5)).tolist()
    whole = retrieval_recall(image @ text.T, text @ image.T, Matches(owners))
    assert similarity_recall(image, text, Matches(owners), block) == pytest.approx(whole)
    assert similarity_recall(torch.eye(4), torch.eye(4), Matches(range(4)), block)["txt_r1"] == 100


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture
def config(data, tmp_path):
    sizes = {"embed_dim": 16, "vision_width": 64, "vision_layers": 2, "vision_patch_size": 12}
    sizes |= {"transformer_width": 64, "transformer_layers": 1, "context_length": 40}
    keys = {"dataset": "flickr", "clip": sizes, "queue_size": 32, "calibration_batches": 30, "batch_size_test": 10}
    return write_config(data, tmp_path / "clip.yaml", "retrieval_clip", **keys)


def test_compress_resume_and_evaluate_on_one_process_or_two(config, tmp_path):
    flags, out = common(config, tmp_path / "out"), tmp_path / "out"
    compress = [*flags, "--p", "0.15", "--set", "ramp=0"]
    assert main(RetrievalClip(), [*compress, "--epoch", "1"]) == 0
    assert main(RetrievalClip(), [*compress, "--epoch", "2", "--resume", "--resume_anyway"]) == 0
    records = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1]
    for record in records:
        assert record["temperature"] > 0 and record["train_loss_sim"] > 0 and math.isfinite(record["train_loss_ita"])
        assert abs(record["percent"] - 85) <= 2, "a step of a small model's cost is about a percent"
        assert {"val_txt_r1", "val_img_r10", "val_r_mean", "train_loss_sim_m"} <= record.keys()
        assert (len(record["tokens"]["image"]), len(record["tokens"]["text"])) == (2, 1)
    score = ["--evaluate", "--pretrained", str(out / "checkpoint_last.pth")]
    assert main(RetrievalClip(), [*flags, *score]) == 0
    one = json.loads((out / "evaluate.txt").read_text())
    for key in ("val_r_mean", "percent", "temperature", "tokens"):
        assert one[key] == records[-1][key]
    two = launch("compress_retrieval_clip_dtp.py", *common(config, tmp_path / "two"), *score)
    assert two.returncode == 0, two.stderr
    assert_same_scores(one, json.loads((tmp_path / "two" / "evaluate.txt").read_text()))


def test_a_p_out_of_reach_says_what_the_text_has_to_do_with_it(config, tmp_path, capsys):
    assert main(RetrievalClip(), [*common(config, tmp_path / "out"), "--p", "0.95", "--set", "ramp=0"]) == 2
    error = capsys.readouterr().err
    assert "p 0.95 is out of reach" in error and RetrievalClip.floor in error and error.count("\n") == 1


def test_a_probe_predicts_the_cost_and_names_a_caption(config, tmp_path):
    task = RetrievalClip()
    run = prepare(task, *parse(common(config, tmp_path / "out"), task))
    with run.inference() as model:
        for temperature in (0.0, 64.0):
            metrics = evaluate(run, "val", temperature)
            sample = CalibrationSample(run.loaders["val"], 100)
            share = sample.cost(task, model, temperature)
            assert share == pytest.approx(metrics["percent"] / 100, abs=0.01)
            assert (share < 1) == (temperature > 0)
        batch = sample.batches[0]
        assert set(task.predict(model, batch, 0.0, Trace())) <= set(batch["caption"])
        assert task.asked(batch, 0) == batch["caption"][0]

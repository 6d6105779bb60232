"""Coverage guided by the text: how the guides count, what they are taught by, and that they learn it."""

import pytest
import torch

from benchmarks.comparison.guided import Guided, foretold
from benchmarks.comparison.rules import share
from benchmarks.photos import guides as teaching
from benchmarks.photos.guides import listened, shown
from benchmarks.photos.machine import Machine
from benchmarks.photos.world import Photo, Places
from madtp.method.attention import AttentionScores
from madtp.method.merged import Merged, Schedule
from models.blip import blip_decoder
from tests.golden.fill import seeded
from tests.tiny import build, images

TOKENS, LEFT, WIDTH = 9, 4, 6
SCHEDULE = Schedule(depth=1, shape=1.0, tokens=TOKENS)
AMOUNT = torch.log(torch.tensor(TOKENS / LEFT)).item()
SIZES = torch.tensor([[1, 1, 2, 3, 1, 1, 2, 1, 3, 2], [1, 3, 1, 1, 2, 1, 1, 2, 1, 1]]).float()


@pytest.fixture
def given():
    """Tokens [2, 10, 6], the class token's attention to nine of them."""
    return seeded(1, 2, 1 + TOKENS, WIDTH), seeded(2, 2, TOKENS).softmax(dim=1)


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_what_is_foretold_has_half_of_the_class_tokens_say(given, sizes):
    (x, attention), guide = given, 3 * seeded(3, WIDTH)
    left, after, kept = Guided(SCHEDULE, guide[None], sizes).prune(x, AttentionScores(None, attention), None, AMOUNT)
    text = torch.zeros(2, TOKENS)
    for sample in range(2):
        for place in range(TOKENS):
            token = x[sample, 1 + place]
            normed = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()
            text[sample, place] = ((normed * guide).sum() / WIDTH**0.5).exp()
            text[sample, place] *= 1 if sizes is None else sizes[sample, 1 + place]
    mixed = AttentionScores(None, share(attention) / 2 + share(text) / 2)
    same, plain, alike = Merged(SCHEDULE, sizes).prune(x, mixed, None, AMOUNT)
    assert torch.equal(kept.rows, alike.rows) and torch.equal(kept.groups, alike.groups)
    torch.testing.assert_close(left, same)
    assert isinstance(after, Guided) and torch.equal(after.sizes_of_tokens, plain.sizes_of_tokens)
    assert after.schedule == plain.schedule and after.guides.equal(guide[None])


def test_of_tokens_that_differ_alike_those_stay_that_the_guide_foretells():
    x = torch.cat([torch.ones(1, 1, TOKENS), torch.eye(TOKENS)[None]], dim=1)
    alike, wanted = torch.full((1, TOKENS), 1 / TOKENS), [0, 3, 5, 8]
    guide = torch.zeros(1, TOKENS).index_fill(1, torch.tensor(wanted), 5.0)
    _, _, kept = Guided(SCHEDULE, guide).prune(x, AttentionScores(None, alike), None, AMOUNT)
    assert kept.indices.tolist() == [wanted]


@pytest.fixture
def captioner():
    return build(blip_decoder, prompt="").float()


CAPTIONS = ["the picture of two cat", "a dog", "a dog and a man in a green car driving down the road", "two red cat"]


@torch.no_grad()
def test_what_is_overheard_is_the_attention_that_was_paid(captioner):
    states, _ = captioner.encode(images(2).float(), 0.0)
    text = captioner.tokenize(CAPTIONS, "[DEC]")
    paid, layers = [], [layer.crossattention for layer in captioner.text_decoder.bert.encoder.layer]
    handles = [
        one.output.dense.register_forward_pre_hook(lambda module, inputs: paid.append(*inputs)) for one in layers
    ]
    with listened(captioner) as heard:
        captioner.text_decoder.bert(text.input_ids, text.attention_mask, causal=True, states=states)
    for handle in handles:
        handle.remove()
    assert len(heard) == len(paid) == 3
    for layer, weights, output in zip(layers, heard, paid, strict=True):
        value = layer.self.keys_values(states).value  # [B, H, 1 + N, E]
        torch.testing.assert_close((weights @ value).transpose(1, 2).flatten(2).view(output.shape), output)
    captioner.text_decoder.bert(text.input_ids, text.attention_mask, causal=True, states=states)
    assert len(heard) == 3, "nobody listens any more"


@torch.no_grad()
def test_captions_are_shown_word_by_word_whatever_their_company(captioner):
    image, rule = images(2).float(), captioner.keep
    tokens, looked = shown(captioner, image, CAPTIONS)
    assert captioner.keep is rule and [tuple(one.shape) for one in tokens] == [(2, 16, 32)] * 3
    torch.testing.assert_close(looked.sum(dim=1), torch.ones(2))
    for photo in range(2):
        words, parts = [], []
        for caption in CAPTIONS[2 * photo : 2 * photo + 2]:
            parts.append(shown(captioner, image[photo : photo + 1], [caption])[1][0])
            words.append(len(captioner.tokenizer(caption).input_ids))
        assert len({*words}) == 2
        # A share of the class token's is not in it, so that means of words weigh a little otherwise: nearly alike.
        mean = (parts[0] * words[0] + parts[1] * words[1]) / sum(words)
        torch.testing.assert_close(looked[photo], mean, atol=2e-3, rtol=0)


def test_guides_learn_what_the_captions_look_at(captioner, monkeypatch, tmp_path):
    photos = [Photo(f"{number}.jpg", (CAPTIONS[number % 4],) * 5) for number in range(4)]
    pictures = images(4).float()
    monkeypatch.setattr(teaching, "read_split", lambda *given: photos)
    monkeypatch.setattr(teaching, "STEPS", 40)
    monkeypatch.setattr(teaching, "batches", lambda files, size: [pictures[[int(file.stem) for file in files]]])
    places = Places(*[tmp_path] * 4)
    found = teaching.taught(captioner, places, Machine("cpu", torch.float32), seed=1)
    with torch.no_grad():
        tokens, looked = shown(captioner, pictures, [text for photo in photos for text in photo.texts])

    def divergence(guide, x):
        return torch.nn.functional.kl_div(foretold(x, guide).log_softmax(dim=1), looked, reduction="batchmean").item()

    assert found.shape == (3, 32) and not found.requires_grad
    for guide, x in zip(found, tokens, strict=True):
        assert divergence(guide, x) < 0.8 * divergence(torch.zeros(32), x)
    again = teaching.taught(captioner, places, Machine("cpu", torch.float32), seed=1)
    assert torch.equal(found, again)

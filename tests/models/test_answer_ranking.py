"""Answers ranked the plain way: question states repeated for every answer, every answer padded to the longest."""

import pytest
import torch
import torch.nn.functional as F

from models import answer_ranking
from models.answer_ranking import batches, candidate_losses, rank_answers
from models.blip_vqa import blip_vqa
from models.med import token_losses
from tests.golden.fill import fill, seeded
from tests.models.test_golden import CONFIG
from tests.models.test_transformers_parity import BERT, IMAGE_SIZE, VIT

ANSWERS = [
    "yes",
    "no",
    "a dog",
    "red",
    "two cats on the table",
    "dog",
    "dog",
    "a",
    "a red dog and a man",
    "2",
    "",
    "no dog",
]


@pytest.fixture(scope="module")
def model():
    built = blip_vqa(image_size=IMAGE_SIZE, vit=VIT, med_config=BERT, config={**CONFIG, "sd_dim": 48})
    return fill(built).eval().double()


@pytest.fixture(scope="module")
def question(model):
    questions = ["what is it?", "red?", "how many cats are in the room?", "is there a dog on the table?", "a?"]
    text = model.tokenize(questions, "[ENC]")
    with torch.no_grad():
        states, _ = model.visual_encoder(seeded(3, 5, 3, IMAGE_SIZE, IMAGE_SIZE).double())
        return model.text_encoder(text.input_ids, text.attention_mask, states=states)


@torch.no_grad()
def plain_losses(model, question, answers):
    """The loss [B, A] of every answer to every question."""
    rows = []
    for states, mask in zip(question.states, question.mask, strict=True):
        count = len(answers.input_ids)
        logits, _ = model.text_decoder(
            answers.input_ids,
            answers.attention_mask,
            states=states.expand(count, -1, -1),
            states_mask=mask.expand(count, -1),
        )
        targets = answers.input_ids.masked_fill(answers.attention_mask == 0, -100)[:, 1:]
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none", label_smoothing=0.1)
        rows.append(losses.sum(dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [1, 30, 4096])
@pytest.mark.parametrize("k", [1, 5, len(ANSWERS)])
def test_losses_equal_the_plain_form(model, question, k, tokens, monkeypatch):
    monkeypatch.setattr(answer_ranking, "TOKENS_AT_A_TIME", tokens)
    answers = model.encode_answers(ANSWERS)
    candidates, losses = candidate_losses(model.text_decoder, question, answers, k)
    expected = plain_losses(model, question, answers)
    torch.testing.assert_close(losses, expected.gather(1, candidates), rtol=1e-9, atol=0)
    best = rank_answers(model.text_decoder, question, answers, k)
    assert [ANSWERS[index] for index in best] == [
        ANSWERS[chosen[row.argmin()]] for chosen, row in zip(candidates, expected.gather(1, candidates), strict=True)
    ]


def test_losses_of_halves_are_in_single_precision():
    logits, targets = seeded(1, 2, 3, 50).bfloat16(), torch.tensor([[4, 49, -100], [0, 7, 7]])
    found = token_losses(logits, targets)
    assert found.dtype == torch.float32 and found[0, 2] == 0
    torch.testing.assert_close(found.double(), token_losses(logits.double(), targets), rtol=1e-5, atol=1e-5)


def test_candidates_have_the_likeliest_first_words(model, question):
    answers = model.encode_answers(ANSWERS)
    with torch.no_grad():
        start = answers.input_ids[:1, :1].expand(5, 1)
        logits, _ = model.text_decoder(start, torch.ones_like(start), states=question.states, states_mask=question.mask)
    likelihood = logits[:, 0][:, answers.input_ids[:, 1]]  # [B, A]
    candidates, _ = candidate_losses(model.text_decoder, question, answers, 5)
    for row, chosen in zip(likelihood, candidates, strict=True):
        rest = [index for index in range(len(ANSWERS)) if index not in chosen]
        assert len(set(chosen.tolist())) == 5 and row[chosen].min() >= row[rest].max()


def test_more_candidates_than_answers(model, question):
    answers = model.encode_answers(ANSWERS)
    every = rank_answers(model.text_decoder, question, answers, len(ANSWERS))
    assert rank_answers(model.text_decoder, question, answers, 128).tolist() == every.tolist()


def test_short_answers_are_not_padded(model, question):
    """One word costs one token, whatever else the list holds."""
    fed = []
    handle = model.text_decoder.register_forward_hook(lambda module, inputs, output: fed.append(inputs[0].numel()))
    answers = model.encode_answers(ANSWERS)
    candidate_losses(model.text_decoder, question, answers, len(ANSWERS))
    handle.remove()
    words = [len(model.tokenizer.tokenize(answer)) for answer in ANSWERS]
    assert sum(fed) == 5 * (1 + sum(words))


@pytest.mark.parametrize("tokens", [1, 7, 100])
def test_batches_cover_every_column_once(tokens):
    lengths = [2, 3, 3, 3, 3, 4, 6, 6, 9]
    pieces = list(batches(lengths, tokens))
    assert [column for columns, _ in pieces for column in range(9)[columns]] == list(range(1, 9))
    for columns, length in pieces:
        assert set(lengths[columns]) == {length}
        size = len(lengths[columns])
        assert size == 1 or size * (length - 2) <= tokens

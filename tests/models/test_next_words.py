"""What a caption or an answer may say next, by which schedules are compared: that of every text alone."""

import pytest
import torch

from models.blip import blip_decoder
from models.blip_vqa import blip_vqa
from tests.models.test_models import CAPTIONS, PRUNED
from tests.tiny import STATEMENTS, build, images


@pytest.mark.parametrize("temperature", [0.0, PRUNED])
@torch.no_grad()
def test_the_words_that_may_follow_are_those_of_every_caption_alone(temperature):
    model, image = build(blip_decoder, keep="sample"), images(3)
    found = model.next_words(image, CAPTIONS, temperature)
    for row, caption in enumerate(CAPTIONS):
        states, _ = model.encode(image[row : row + 1], temperature)
        text = model.tokenize([caption], "[DEC]")
        logits, _ = model.text_decoder(text.input_ids, text.attention_mask, states=states)
        length = text.input_ids.shape[1]
        torch.testing.assert_close(found[row, :length], logits[0].softmax(dim=-1))
        assert found[row, length:].eq(0).all(), "behind the end of a caption"


@pytest.mark.parametrize("keep, temperature", [("batch", 0.0), ("sample", 0.0), ("sample", PRUNED)])
@torch.no_grad()
def test_the_words_that_may_begin_an_answer_are_those_to_every_question_alone(keep, temperature):
    model, image = build(blip_vqa, keep=keep), images(3)
    start = torch.tensor([[model.tokenizer.convert_tokens_to_ids("[DEC]")]])
    guidance = {"space_dict": model.space_dict, "temperature": temperature}
    found = model.first_word(image, STATEMENTS, temperature)
    for row in range(3):
        states, _ = model.encode(image[row : row + 1], temperature)
        text = model.tokenize_questions(STATEMENTS[row : row + 1])
        question = model.text_encoder(text.input_ids, text.attention_mask, states=states, **guidance)
        logits, _ = model.text_decoder(start, torch.ones_like(start), states=question.states)
        torch.testing.assert_close(found[row], logits[0, 0].softmax(dim=-1))


@torch.no_grad()
def test_in_mixed_precision_they_are_probabilities_too():
    captioner, answerer, image = build(blip_decoder).float(), build(blip_vqa).float(), images(3).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = captioner.next_words(image, CAPTIONS)[:, 0], answerer.first_word(image, STATEMENTS)
    for likelihood in found:
        assert likelihood.dtype == torch.float32
        torch.testing.assert_close(likelihood.sum(dim=1), torch.ones(3), rtol=0, atol=1e-5)

"""The dense models against transformers' BLIP: another implementation, the same weights, float64, T = 0."""

import re
from contextlib import contextmanager

import pytest
import torch
import transformers
from transformers import BlipConfig, BlipForConditionalGeneration, BlipForQuestionAnswering

from models.blip import blip_decoder
from models.blip_vqa import blip_vqa
from tests.golden.fill import fill, seeded
from tests.models.test_golden import CONFIG

pytestmark = pytest.mark.skipif(
    int(transformers.__version__.partition(".")[0]) < 5, reason="its BLIP was another one before version 5"
)
VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 16}
BERT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "max_position_embeddings": 48,
    "vocab_size": 202,
    "layer_norm_eps": 1e-12,
}
IMAGE_SIZE = 64
DEC, SEP = 200, 23  # of the golden tokenizer
THEIR_CONFIG = BlipConfig(
    text_config={
        **BERT,
        "encoder_hidden_size": 48,
        "bos_token_id": DEC,
        "sep_token_id": SEP,
        "pad_token_id": 0,
        "hidden_act": "gelu",
        "label_smoothing": 0.1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    vision_config={
        "hidden_size": 48,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    },
)
RENAMED = (
    (r"^vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
    (r"^vision_model\.post_layernorm", "visual_encoder.norm"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.", r"visual_encoder.blocks.\1."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)


def our_keys(state):
    """Their state dict under our names."""
    renamed = {}
    for name, values in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = values
    return renamed


def twins(their_class, builder):
    """Their model with every weight and bias drawn, and ours with the same values."""
    theirs = fill(their_class(THEIR_CONFIG)).eval().double()
    ours = builder(image_size=IMAGE_SIZE, vit=VIT, med_config=BERT, config={**CONFIG, "sd_dim": 48}).eval().double()
    report = ours.load_state_dict(our_keys(theirs.state_dict()), strict=False)
    assert not report.unexpected_keys
    assert all("position_ids" in name or name == "space_dict" for name in report.missing_keys)
    return theirs, ours


@contextmanager
def recorded(module):
    """A list that receives what `module` returns."""
    outputs = []
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    yield outputs
    handle.remove()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.fixture(scope="module")
def image():
    return seeded(7, 3, 3, IMAGE_SIZE, IMAGE_SIZE).double()


@pytest.fixture(scope="module")
def captioners():
    return twins(BlipForConditionalGeneration, blip_decoder)


def test_captioner(captioners, image):
    theirs, ours = captioners
    captions = ["a picture of a dog", "a picture of two red cats on a table", "a picture of man"]
    text = ours.tokenize(captions, "[DEC]")
    labels = text.input_ids.masked_fill(text.attention_mask == 0, -100)
    labels[:, : ours.prompt_length] = -100
    with torch.no_grad(), recorded(ours.text_decoder) as decoded:
        expected = theirs(image, text.input_ids, attention_mask=text.attention_mask, labels=labels)
        losses = ours(image, captions)
        states, _ = ours.visual_encoder(image)
    close(states, expected.image_embeds)
    close(decoded[0][0], expected.logits)
    close(losses["loss_task"], expected.loss)


def test_greedy_captions(captioners, image):
    theirs, ours = captioners
    prompts = ours.tokenize([ours.prompt] * len(image), "[DEC]")
    limits = {"max_length": 16, "min_length": 8}
    tokens = theirs.generate(image, prompts.input_ids, prompts.attention_mask, num_beams=1, do_sample=False, **limits)
    expected = [ours.decode(sequence[ours.prompt_length :]) for sequence in tokens]
    assert ours.generate(image, num_beams=1, **limits) == expected
    assert len(set(expected)) > 1


def test_question_answering(image):
    """Ours in one padded batch, theirs one by one: transformers 5 lets answers attend to a question's padding."""
    theirs, ours = twins(BlipForQuestionAnswering, blip_vqa)
    questions = ["what is on the table?", "red?", "how many cats are in the room with the dog?"]
    answers = ["dog", "a red cat", "two"]
    ones = torch.ones(len(answers), dtype=torch.float64)
    with torch.no_grad(), recorded(ours.text_decoder) as decoded, recorded(theirs.text_decoder) as expected:
        losses = ours(image, questions, answers, n=[1, 1, 1], weights=ones)
        for pixels, question, answer in zip(image, questions, answers, strict=True):
            ids, labels = ours.tokenize([question], "[ENC]").input_ids, ours.encode_answers([answer]).input_ids
            theirs(ids, pixels[None], labels, torch.ones_like(labels), torch.ones_like(ids), labels)
    for logits, one in zip(decoded[0][0], expected, strict=True):
        close(logits[: one.logits.shape[1]], one.logits[0])
    summed = sum(one.loss * (one.logits.shape[1] - 1) for one in expected)  # theirs is a mean over an answer's tokens
    close(losses["loss_task"], summed / len(answers))

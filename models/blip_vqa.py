"""BLIP for visual question answering: a question encoder over the image and an answer decoder over the question.

Shapes: B questions, A answers, L text tokens, K learnable tokens.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import BatchEncoding

from madtp.cost.trace import Trace
from madtp.method.alignment import similarity_loss
from madtp.method.distillation import distillation_loss
from madtp.method.precision import at_least_single
from madtp.shared import generation
from models.answer_ranking import rank_answers
from models.bert import TextOutput
from models.blip import BlipBase
from models.building import built
from models.med import Decoder, med_encoder, next_tokens, token_losses


class BlipVQA(BlipBase):
    """Image encoder, question encoder and answer decoder."""

    text_limits = {"question": 35, "answer": None}

    def __init__(self, med_config: str | dict, image_size: int, vit: str | dict, config: dict):
        super().__init__(image_size, vit, config, drop_path=0.1)
        self.text_encoder = med_encoder(self.text_config(med_config, self.visual_encoder.embed_dim))
        width = self.text_encoder.shape.width
        self.text_decoder = Decoder(self.text_config(med_config, width))
        for layer in self.text_decoder.bert.encoder.layer:  # it neither aligns nor prunes: no gradient is to be awaited
            layer.query_model.requires_grad_(False)

    def forward(
        self,
        image: Tensor,
        question: list[str],
        answer: list[str] | BatchEncoding | None = None,
        temperature: float = 0.0,
        train: bool = True,
        n: Sequence[int] | None = None,
        weights: Tensor | None = None,
        inference: str = "rank",
        k_test: int = 128,
        trace: Trace | None = None,
    ) -> dict[str, Tensor] | Tensor | list[str]:
        """Losses in training; otherwise indices [B] into the answer list (rank) or answers (generate).

        Args:
            image: [B, 3, H, W].
            question: B texts.
            answer: training: all answers of all questions, one after the other; ranking: `encode_answers(list)`.
            temperature: pruning temperature of image and question; 0 is the dense model.
            train: return the losses.
            n: [B], how many of the answers belong to each question.
            weights: [A], weight of every answer.
            inference: "rank" or "generate".
            k_test: how many answers are ranked to the end, those with the likeliest first token.
            trace: where to write down what each layer did to its tokens.
        """
        align = train and temperature > 0
        text = self.tokenize_questions(question)
        words = self.look_up(text)
        states, image_aligned = self.encode(image, temperature, align, trace)
        output = self.read(text, words, states, temperature, align, trace)
        if train:
            losses = {"loss_task": self._answer_loss(output, answer, n, weights)}
            losses |= distillation_loss(self.teacher, image, states)
            if align:
                losses["loss_sim"] = similarity_loss(image_aligned, output.aligned)
            return losses
        if inference == "rank":
            return rank_answers(self.text_decoder, output, answer, k_test)
        return self._generate(output)

    def first_word(self, image: Tensor, question: list[str], temperature: float = 0.0) -> Tensor:
        """Probabilities [B, V] of the first token of the answer."""
        text = self.tokenize_questions(question)
        words = self.look_up(text)
        states, _ = self.encode(image, temperature)
        output = self.read(text, words, states, temperature)
        start = self.tokenize([""] * len(question), "[DEC]").input_ids[:, :1]
        logits, _ = self.text_decoder(start, torch.ones_like(start), states=output.sequences, states_mask=output.mask)
        return at_least_single(logits[:, 0]).softmax(dim=-1)

    def tokenize_questions(self, questions: Sequence[str]) -> BatchEncoding:
        """Token ids and mask [B, L] of questions, [ENC] first, long ones cut."""
        return self.tokenize(questions, "[ENC]", max_length=self.text_limits["question"])

    def encode_answers(self, answers: Sequence[str]) -> BatchEncoding:
        """Token ids and mask [A, L] of a list of answers to rank, [DEC] first."""
        return self.tokenize(answers, "[DEC]")

    def _answer_loss(self, question: TextOutput, answers: list[str], n: Sequence[int], weights: Tensor) -> Tensor:
        """Decoding losses of the answers, weighted, summed and divided by the number of questions."""
        owner = torch.arange(len(n)).repeat_interleave(torch.as_tensor(n, device="cpu"))
        owner = owner.to(weights.device, non_blocking=True)
        encoded = self.encode_answers(answers)
        logits, _ = self.text_decoder(
            encoded.input_ids, encoded.attention_mask, states=question.states[owner], states_mask=question.mask[owner]
        )
        losses = token_losses(logits[:, :-1], next_tokens(encoded.input_ids, encoded.attention_mask)).sum(dim=1)
        return (weights * losses).sum() / len(n)

    def _generate(self, question: TextOutput, num_beams: int = 3, max_length: int = 10, min_length: int = 1):
        start = self.tokenizer.convert_tokens_to_ids("[DEC]")
        tokens = generation.beam_search(
            self.text_decoder,
            torch.full((len(question.first), 1), start, device=question.first.device),
            question.sequences,
            states_mask=question.mask,
            num_beams=num_beams,
            max_length=max_length,
            min_length=min_length,
            eos=self.tokenizer.sep_token_id,
        )
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=True)


def blip_vqa(
    pretrained: str = "",
    image_size: int = 480,
    vit: str | dict = "base",
    med_config: str | dict = "configs/med_config.json",
    evaluate: bool = False,
    config: dict | None = None,
) -> BlipVQA:
    """Builds the model and loads a checkpoint of BLIP, of MADTP or of ours.

    Raises:
        UserError: sizes that do not fit each other, or a checkpoint that cannot be read or does not fit.
    """
    sizes = {"vit": vit, "med_config": med_config}
    construct = partial(BlipVQA, image_size=image_size)
    return built(construct, sizes, config, pretrained, evaluate, fresh=("text_encoder.", "text_decoder."))

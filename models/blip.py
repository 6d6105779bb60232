"""What the BLIP models share, and the captioner (Li et al., 2022).

Shapes: B batch, L text tokens, K learnable tokens, C their width.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, BertConfig

from madtp.cost.trace import Trace
from madtp.method.alignment import similarity_loss
from madtp.method.distillation import Teacher, distillation_loss
from madtp.method.errors import LARGEST, UserError
from madtp.method.keep import rule_of
from madtp.method.layout import Sequences
from madtp.method.precision import at_least_single
from madtp.shared import generation
from madtp.shared.layers import Guidance
from madtp.shared.weights.architecture import MED
from models.bert import Embeddings, TextOutput, read_config
from models.building import built
from models.med import Decoder, next_tokens, token_losses
from models.tokenizer import fingerprint, init_tokenizer
from models.vit import VisionTransformer

VIT_SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3, "patch_size": 16},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16, "patch_size": 16},
}


class BlipBase(nn.Module):
    """An image encoder, the learnable tokens that guide its pruning, and a tokenizer.

    Args:
        image_size: pixels on a side.
        vit: name of a size, or a dict of `embed_dim`, `depth`, `num_heads`, `patch_size`; `mlp_ratio` and `norm_eps` if
            they are other than 4 and 1e-6.
        config: `sd_num` (K), `sd_dim` (C), `tokenizer` (folder); `keep`, `vit_grad_ckpt`, `vit_ckpt_layer`, `drop_path`
            if they are other than "batch", off, 0 and the model's own.
        drop_path: stochastic depth of the last image layer unless `config` says otherwise.

    Attributes:
        keep: the rule by which all towers keep tokens.
        teacher: the dense image tower that it also learns from, None for none.
        text_limits: for each kind of text that it reads, the tokens after which one is cut; None for never.
        architecture: what a checkpoint has to say of the model, see `madtp.shared.weights.architecture`.
    """

    text_limits: dict[str, int | None]
    teacher: Teacher | None = None

    def __init__(self, image_size: int, vit: str | dict, config: dict, drop_path: float = 0.0):
        super().__init__()
        self.config = config
        self.visual_encoder = create_vit(vit, image_size, config, drop_path)
        self.space_dict = nn.Parameter(torch.randn(config["sd_num"], config["sd_dim"]))
        self.keep = rule_of(config, self.visual_encoder.shape.depth)
        self.tokenizer = init_tokenizer(config["tokenizer"])
        self.architecture = {"image_size": image_size, "vit": vit, "vocabulary": fingerprint(self.tokenizer)}

    @property
    def image_tower(self) -> nn.Module:
        """What reads images."""
        return self.visual_encoder

    @property
    def num_learnable(self) -> int:
        """K."""
        return len(self.space_dict)

    def encode(
        self, image: Tensor, temperature: float, align: bool = False, trace: Trace | None = None, together: int = 1
    ) -> tuple[Sequences, Tensor | None]:
        """Tokens of images [B, 3, H, W] by the model's own rule, and their aligned feature; see `VisionTransformer`."""
        guidance = Guidance.by(self.space_dict, temperature, align)
        return self.visual_encoder.encode(image, guidance, trace, self.keep, together)

    def look_up(self, text: BatchEncoding) -> Tensor:
        """The word embeddings [B, L, D] of a text, to be looked up before the images are encoded.

        Gradients come the other way round: that of the embeddings, as large as the vocabulary, is then the last, when
        nothing is left of what the images' layers kept for theirs.
        """
        return self.text_encoder.embeddings.word_embeddings(text.input_ids)

    def read(
        self,
        text: BatchEncoding,
        words: Tensor,
        states: Any,
        temperature: float,
        align: bool = False,
        trace: Trace | None = None,
    ) -> TextOutput:
        """What the text encoder makes of a text [B, L] and its word embeddings over the tokens of its images.

        See `look_up` and `BertModel.forward`.
        """
        guidance = {"space_dict": self.space_dict, "temperature": temperature, "align": align, "trace": trace}
        sides = {"states": states, "words": words, "keep": self.keep}
        return self.text_encoder(text.input_ids, text.attention_mask, **sides, **guidance)

    def text_config(self, med_config: str | Path | dict, states_width: int) -> BertConfig:
        """BERT sizes that fit this model's tokenizer and what the text attends to.

        Raises:
            UserError: they are none, or have fewer words than the tokenizer.
        """
        checkpointed = checkpointed_layers(self.config)
        sizes = read_config(
            med_config, encoder_width=states_width, sd_dim=self.config["sd_dim"], checkpointed_layers=checkpointed
        )
        if sizes.vocab_size < len(self.tokenizer):
            raise UserError(
                f"med_config: vocab_size {sizes.vocab_size} is less than the {len(self.tokenizer)} tokens of "
                f"{self.config['tokenizer']} ([DEC] and [ENC] included); set vocab_size to {len(self.tokenizer)}"
            )
        self.architecture["med_config"] = {name: getattr(sizes, name) for name in MED}
        return sizes

    @property
    def most_tokens(self) -> int:
        """What the position embeddings of its text towers allow."""
        return min(module.position_ids.shape[1] for module in self.modules() if isinstance(module, Embeddings))

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens texts have before they are cut."""
        return [len(ids) for ids in self.tokenizer(list(texts)).input_ids]

    def tokenize(
        self, texts: Sequence[str], first_token: str, padding: str = "longest", max_length: int | None = None
    ) -> BatchEncoding:
        """Token ids and mask [B, L] on the model's device, the first token replaced by the mode's own."""
        encoded = self.tokenizer(
            list(texts), padding=padding, truncation=max_length is not None, max_length=max_length, return_tensors="pt"
        )
        encoded.input_ids[:, 0] = self.tokenizer.convert_tokens_to_ids(first_token)
        device = self.space_dict.device  # which need not have done its work before it takes the text
        return BatchEncoding({name: values.to(device, non_blocking=True) for name, values in encoded.items()})


def create_vit(vit: str | dict, image_size: int, config: dict, drop_path: float = 0.0) -> VisionTransformer:
    """Builds the image encoder from the name of a size or a dict of sizes.

    Raises:
        UserError: there is no such name, or the sizes do not fit each other.
    """
    if not isinstance(vit, dict) and vit not in VIT_SIZES:
        raise UserError(f"vit: {vit!r} is none of {', '.join(VIT_SIZES)}; a dict with embed_dim, depth, ... works too")
    sizes = vit if isinstance(vit, dict) else VIT_SIZES[vit]
    if VIT_SIZES["large"].items() <= sizes.items():
        drop_path = max(drop_path, 0.1)
    if config.get("drop_path") is not None:
        drop_path = config["drop_path"]
    check_vit(image_size, **sizes)
    sizes = {**sizes, "sd_dim": config["sd_dim"], "checkpointed_layers": checkpointed_layers(config)}
    return VisionTransformer(image_size, drop_path_rate=drop_path, **sizes)


def checkpointed_layers(config: dict) -> int:
    """How many of the last layers of the image tower, and of the text towers, are recomputed in the backward pass."""
    return config.get("vit_ckpt_layer", 0) if config.get("vit_grad_ckpt") else 0


def check_vit(
    image_size: int,
    patch_size: int = 16,
    embed_dim: int = 768,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    **others: float,
) -> None:
    """Raises a UserError for sizes that do not fit each other."""
    if image_size % patch_size:
        raise UserError(f"image_size {image_size} is no multiple of patch_size {patch_size} of vit; choose another")
    if embed_dim % num_heads:
        raise UserError(f"vit: embed_dim {embed_dim} is no multiple of num_heads {num_heads}; choose another")
    if not 1 <= embed_dim * mlp_ratio <= LARGEST:
        raise UserError(f"vit: an MLP of width {embed_dim} x mlp_ratio {mlp_ratio:g} cannot be; choose another")


class BlipDecoder(BlipBase):
    """Captioner: image encoder and causal text decoder.

    Args:
        med_config: BERT sizes, a JSON file or a dict.
        prompt: text that every caption starts with and that costs no loss.
    """

    text_limits = {"caption": 40}

    def __init__(self, med_config: str | dict, image_size: int, vit: str | dict, prompt: str, config: dict):
        super().__init__(image_size, vit, config)
        self.text_decoder = Decoder(self.text_config(med_config, self.visual_encoder.embed_dim))
        self.prompt = prompt
        self.prompt_length = len(self.tokenizer(prompt).input_ids) - 1  # [DEC] and the prompt, without [SEP]

    def forward(
        self,
        image: Tensor,
        caption: list[str],
        temperature: float = 0.0,
        train: bool = True,
        trace: Trace | None = None,
    ) -> dict[str, Tensor]:
        """Losses of the captions.

        Args:
            image: [B, 3, H, W].
            caption: B texts that start with the prompt.
            temperature: pruning temperature of the image tower; the decoder keeps every token.
            train: also the similarity loss, whose text side comes from the decoder's hidden states.
            trace: where to write down what each layer did to its tokens.
        """
        align = train and temperature > 0
        states, image_aligned = self.encode(image, temperature, align, trace)
        text = self.tokenize(caption, "[DEC]", max_length=self.text_limits["caption"])
        targets = next_tokens(text.input_ids, text.attention_mask)
        targets[:, : self.prompt_length - 1] = -100
        guidance = {"space_dict": self.space_dict, "align": align, "trace": trace, "keep": self.keep}
        logits, output = self.text_decoder(text.input_ids, text.attention_mask, states=states, **guidance)
        losses = token_losses(logits[:, :-1], targets)
        result = {"loss_task": losses.sum() / (targets != -100).sum(), **distillation_loss(self.teacher, image, states)}
        if align:
            result["loss_sim"] = similarity_loss(image_aligned, output.aligned)
        return result

    def next_words(self, image: Tensor, caption: list[str], temperature: float = 0.0) -> Tensor:
        """Probabilities [B, L, V] of the token behind each of a caption, the prompt included; 0 behind its end."""
        states, _ = self.encode(image, temperature)
        text = self.tokenize(caption, "[DEC]", max_length=self.text_limits["caption"])
        logits, _ = self.text_decoder(text.input_ids, text.attention_mask, states=states)
        return at_least_single(logits).softmax(dim=-1) * text.attention_mask.unsqueeze(-1)

    @torch.no_grad()
    def generate(
        self,
        image: Tensor,
        sample: bool = False,
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        top_p: float = 0.9,
        temperature: float = 0.0,
        trace: Trace | None = None,
    ) -> list[str]:
        """Captions of images, the prompt left out.

        Args:
            image: [B, 3, H, W].
            sample: draw from the nucleus of probability `top_p` instead of searching.
            num_beams: width of the beam search; 1 is greedy.
            max_length: tokens at most, prompt included.
            min_length: tokens at least, prompt included.
            top_p: probability of the nucleus.
            temperature: pruning temperature of the image tower.
            trace: where to write down what each layer did to its tokens.
        """
        states, _ = self.encode(image, temperature, trace=trace)
        prompt = self.tokenize([self.prompt], "[DEC]").input_ids[:, :-1]
        limits = {"max_length": max_length, "min_length": min_length, "eos": self.tokenizer.sep_token_id}
        prompts = prompt.expand(len(image), -1)
        if sample:
            tokens = generation.nucleus_sampling(self.text_decoder, prompts, states, top_p=top_p, **limits)
        else:
            tokens = generation.beam_search(self.text_decoder, prompts, states, num_beams=num_beams, **limits)
        return [self.decode(sequence[self.prompt_length :]) for sequence in tokens]

    def decode(self, tokens: Tensor) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=True)


def blip_decoder(
    pretrained: str = "",
    image_size: int = 384,
    vit: str | dict = "base",
    med_config: str | dict = "configs/med_config.json",
    prompt: str = "a picture of ",
    evaluate: bool = False,
    config: dict | None = None,
) -> BlipDecoder:
    """Builds the captioner and loads a checkpoint of BLIP, of MADTP or of ours.

    Raises:
        UserError: sizes that do not fit each other, or a checkpoint that cannot be read or does not fit.
    """
    construct = partial(BlipDecoder, image_size=image_size, prompt=prompt)
    return built(construct, {"vit": vit, "med_config": med_config}, config, pretrained, evaluate, ("text_decoder.",))

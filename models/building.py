"""BLIP's models from a configuration and a checkpoint, which may be of an earlier stage or of another library."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from madtp.shared.weights import architecture, checkpoint
from models.tokenizer import check_vocabulary

logger = logging.getLogger(__name__)

DEFAULTS = {"sd_num": 100, "sd_dim": 768, "tokenizer": "pretrained/bert-base-uncased"}  # of the paper's models


def built(
    construct: Callable[..., nn.Module],
    sizes: dict,
    config: dict | None,
    pretrained: str,
    evaluate: bool,
    fresh: Sequence[str] = (),
    convert: Sequence[Callable[[dict, nn.Module], dict]] = (),
) -> nn.Module:
    """Builds a model, draws fresh weights by the config's scheme, then loads the checkpoint if there is one.

    Args:
        construct: the model from its sizes and `config`.
        sizes: by name, as chosen; those that a checkpoint says itself go before them.
        config: of the model; what it does not say of `DEFAULTS` is as there.
        pretrained: checkpoint, or an empty string for a model from scratch.
        evaluate: everything but the guidance's own weights has to be in the checkpoint.
        fresh: parts that a checkpoint of an earlier stage may lack when the model is to be trained.
        convert: changes to the checkpoint's entries before they are loaded, besides resizing positions.

    Raises:
        UserError: sizes that do not fit each other, or a checkpoint that cannot be read or does not fit.
    """
    config = DEFAULTS | (config or {})
    content = checkpoint.read(pretrained) if pretrained else None
    stated = architecture.of(content) if content else {}
    own = {name: stated[name] for name in sizes if name in stated}
    own["med_config"] = architecture.completed(sizes["med_config"], stated.get("med_config", {}))
    model = construct(**sizes | own, config=architecture.with_vocabulary(config, stated))
    if model.config.get("init_scheme") == "xavier":
        xavier_(model)
    if content:
        check_vocabulary(model.tokenizer, model.config["tokenizer"], content, pretrained)
        architecture.say_resized(stated, model.visual_encoder.shape.image_size, pretrained, evaluate)
        convert = (*(() if evaluate else (text_from_sibling,)), checkpoint.resize_positions, *convert)
        checkpoint.fit(model, content, pretrained, fresh=fresh, evaluate=evaluate, convert=convert)
    return model


TEXT_SIBLINGS = {"text_encoder.": "text_decoder.bert.", "text_decoder.bert.": "text_encoder."}


def text_from_sibling(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Lets a text tower that a checkpoint lacks start from the one that it has.

    BLIP's encoder and decoder share everything but self-attention, so either knows the other's words and images.
    """
    own, given = model.state_dict(), dict(state)
    for tower, sibling in TEXT_SIBLINGS.items():
        wanted, held = (any(name.startswith(tower) for name in names) for names in (own, state))
        copies = {name: name.replace(sibling, tower, 1) for name in state if name.startswith(sibling)}
        if wanted and copies and not held:
            logger.info("%s starts from the checkpoint's %s", tower.partition(".")[0], sibling.partition(".")[0])
            given |= {copy: state[name] for name, copy in copies.items()}
            given = {name: value for name, value in given.items() if name in own or name not in copies}
    return given


@torch.no_grad()
def xavier_(model: nn.Module) -> None:
    """Draws weights that let small models learn fast: Xavier for matrices, wider embeddings than BERT's 0.02."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)
    for module in model.modules():  # after the matrices, since the output matrix is the word embedding
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith(("pos_embed", "cls_token", "position_embeddings.weight")):
            nn.init.normal_(parameter, std=0.05)

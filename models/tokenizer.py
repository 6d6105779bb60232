"""BERT's tokenizer with the two words that BLIP adds, held against the vocabulary of a checkpoint."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from transformers import BertTokenizer, BertTokenizerFast

from madtp.method.errors import UserError
from madtp.shared.files import FETCH, is_pointer

FILES = {"vocab.txt": BertTokenizer, "tokenizer.json": BertTokenizerFast}
NEEDED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# bert-base-uncased by its size and a few of its words; BLIP's released models know these and the two added ones.
UNCASED = {
    "[PAD]": 0,
    "[UNK]": 100,
    "[CLS]": 101,
    "[SEP]": 102,
    "[MASK]": 103,
    "a": 1037,
    "the": 1996,
    "##s": 2015,
    "dog": 3899,
}
UNCASED_WORDS = 30522
ADDED = ("[DEC]", "[ENC]")

WAY_OUT = "point the key `tokenizer` to the folder that it was trained with"

logger = logging.getLogger(__name__)


def init_tokenizer(folder: str) -> BertTokenizer:
    """BERT's tokenizer from a folder, with [DEC] to start decoding and [ENC] to start multimodal encoding.

    The folder holds `vocab.txt`, or `tokenizer.json` as newer files do.

    Raises:
        UserError: neither is there, or it is no vocabulary of a BERT.
    """
    file = next((file for file in FILES if (Path(folder) / file).is_file()), None)
    if file is None:
        raise UserError(
            f"tokenizer: no vocab.txt in {folder or 'an empty name'}, and no tokenizer.json; "
            "put the files of bert-base-uncased there or point the key `tokenizer` to a folder that has them"
        )
    if is_pointer(Path(folder) / file):
        raise UserError(f"tokenizer: {Path(folder) / file} is {FETCH}")
    try:
        tokenizer = FILES[file].from_pretrained(str(folder), local_files_only=True)
        if missing := [token for token in NEEDED if token not in words_of(folder)]:
            raise ValueError(f"its vocabulary lacks {' '.join(missing)}")
    except Exception as error:  # the tokenizer's own library raises no type in particular
        raise UserError(f"tokenizer: {folder} cannot be used: {error}; take the files of bert-base-uncased") from error
    tokenizer.add_special_tokens({"bos_token": ADDED[0]})
    tokenizer.add_tokens([ADDED[1]], special_tokens=True)
    return tokenizer


def words_of(folder: str) -> set[str]:
    """The words in a folder's file itself: the library adds to them what it needs, and so hides that it is lacking."""
    path = Path(folder) / "vocab.txt"
    if path.is_file():
        return set(path.read_text(encoding="utf-8").split("\n"))
    content = json.loads((Path(folder) / "tokenizer.json").read_bytes())
    if (kind := content["model"].get("type")) != "WordPiece":
        raise ValueError(f"its tokenizer.json is of type {kind}, not WordPiece as BERT's")
    return {*content["model"]["vocab"], *(token["content"] for token in content.get("added_tokens", ()))}


def fingerprint(tokenizer: BertTokenizer) -> str:
    """A short name of a vocabulary: the number of its words, and a digest of them in their order."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    digest = hashlib.sha256("\n".join(word for word, _ in words).encode()).hexdigest()
    return f"{len(words)} words, {digest[:12]}"


def check_vocabulary(tokenizer: BertTokenizer, folder: str, content: Mapping, path: object) -> None:
    """Holds a tokenizer against the words that a checkpoint has embeddings of.

    Args:
        tokenizer: with the added words.
        folder: that it is from.
        content: of the checkpoint.
        path: of the checkpoint.

    Raises:
        UserError: the checkpoint was trained with another vocabulary; says what tells.
    """
    stated, own = content.get("architecture", {}).get("vocabulary"), fingerprint(tokenizer)
    weights = content["model"].items()
    tables = [table for name, table in weights if name.endswith("word_embeddings.weight") and table.dim()]
    words = len(tables[0]) if tables else len(tokenizer)
    if stated is not None and stated != own:
        raise UserError(f"tokenizer: {path} was trained with {stated}, and {folder} has {own}; {WAY_OUT}")
    if stated is None and words == UNCASED_WORDS + len(ADDED) and "keep" not in content:  # which our earlier ones have
        check_uncased(tokenizer, folder, path)
    elif stated is None and words != len(tokenizer) and not own_folder(folder, path):
        counts = f"{path} has {words} words and {folder} {len(tokenizer)}"
        logger.warning("%s: if they are not those that it was trained with, %s", counts, WAY_OUT)


def own_folder(folder: str, path: object) -> bool:
    """Whether a vocabulary lies beside a checkpoint's weights, and so is theirs, however long their table is."""
    file = Path(str(path)).resolve()
    return Path(folder).resolve() in (file, file.parent)


def check_uncased(tokenizer: BertTokenizer, folder: str, path: object) -> None:
    """Refuses a vocabulary that is not bert-base-uncased's.

    Raises:
        UserError: its length or a word tells that it is another one.
    """
    own, length = tokenizer.get_vocab(), UNCASED_WORDS + len(ADDED)
    found = [f"{len(own) - len(ADDED)} words"] if len(own) != length else []
    found += [f"{word!r} has number {own.get(word)}" for word, number in UNCASED.items() if own.get(word) != number]
    if found:
        trained = f"{path} was trained with the {UNCASED_WORDS} words of bert-base-uncased"
        raise UserError(f"tokenizer: {trained}, and {folder} has others ({found[0]}); {WAY_OUT}")

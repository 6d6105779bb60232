"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions, through pycocoevalcap.

A score at the end of an epoch is no reason to lose the epoch: whatever cannot be computed here is left out, and one
line says what and why. Tokens come from Stanford's tokenizer as everybody's do, where Java can run it.
"""

import logging
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from math import isfinite
from pathlib import Path

from madtp.run.keys import CAPTION_SCORES

logger = logging.getLogger(__name__)

Tokens = dict[int, list[str]]  # texts of every image, their tokens parted by spaces

GET_SPICE = "python -m pycocoevalcap.spice.get_stanford_models downloads them"


def caption_metrics(
    captions: Sequence[str], references: Sequence[Sequence[str]], wanted: Collection[str]
) -> dict[str, float]:
    """Scores in percent, by the names of COCO's evaluation: Bleu_1 to Bleu_4, METEOR, ROUGE_L, CIDEr, SPICE.

    Args:
        captions: one per image.
        references: what people wrote, several per image. Those without a word do not count.
        wanted: which scores, keys of `SCORERS`.
    """
    if not wanted:
        return {}
    texts = [*captions, *chain.from_iterable(references)]
    scores, missing = {}, defaultdict(list)
    try:
        tokens = iter(stanford_tokens(texts))
    except Exception as error:
        tokens = iter(plain_tokens(texts))
        missing[reason(error)].append("Stanford's tokenizer")
    said = {image: [next(tokens)] for image in range(len(captions))}
    given = {image: list(filter(None, [next(tokens) for _ in those])) for image, those in enumerate(references)}
    if silent := [image for image, those in given.items() if not those]:
        warn_once(f"caption scores: without {len(silent)} of {len(given)} images, whose references have no words")
        for image in silent:
            del said[image], given[image]
    if not given:
        return {}
    for name in (name for name in SCORERS if name in wanted):
        try:
            values = [float(value) for value in SCORERS[name](given, said)]
            if not all(map(isfinite, values)):
                raise ValueError("it is not a number")
            names = [name] if len(values) == 1 else [f"{name}_{n}" for n, _ in enumerate(values, start=1)]
            scores |= {name: 100 * value for name, value in zip(names, values, strict=True)}
        except Exception as error:
            missing[reason(error)].append(name)
    if missing:
        faults = (f"no {', '.join(names)} ({why})" for why, names in missing.items())
        warn_once(f"caption scores: {'; '.join(faults)}")
    return scores


def stanford_tokens(texts: Sequence[str]) -> list[str]:
    """Penn Treebank tokens of each text in lower case, without punctuation, as COCO's evaluation has them."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [java(), "-Dfile.encoding=UTF-8", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer"]
    lines = "\n".join(" ".join(text.split()) for text in texts)
    done = subprocess.run([*command, "-preserveLines", "-lowerCase"], input=lines.encode(), capture_output=True)
    tokenized = done.stdout.decode().removesuffix("\n").split("\n")
    if len(tokenized) != len(texts):
        raise RuntimeError(f"Java ended with status {done.returncode}")
    return [" ".join(word for word in line.split() if word not in ptbtokenizer.PUNCTUATIONS) for line in tokenized]


def plain_tokens(texts: Sequence[str]) -> list[str]:
    """Nearly the same without Java: words, 's and n't by themselves."""
    parted = (re.sub(r"(n't|'(?:s|re|ve|ll|d|m))\b", r" \1", text.lower()) for text in texts)
    return [" ".join(re.findall(r"n't|'?\w+(?:[-.,/]\w+)*", text)) for text in parted]


def bleu(given: Tokens, said: Tokens) -> list[float]:
    """Papineni et al., 2002: n-grams of the caption that some reference has, n up to 1, 2, 3 and 4."""
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(4).compute_score(given, said, verbose=0)[0]


def meteor(given: Tokens, said: Tokens) -> list[float]:
    """Denkowski and Lavie, 2014: words aligned by form, stem, synonym and paraphrase."""
    from pycocoevalcap.meteor.meteor import Meteor

    java()
    scorer = Meteor()
    try:
        return [scorer.compute_score(given, said)[0]]
    finally:  # its destructor would wait for a lock that a failure leaves behind, and complain about a broken pipe
        if scorer.lock.locked():
            scorer.lock.release()
        with suppress(OSError):
            scorer.meteor_p.stdin.close()


def rouge(given: Tokens, said: Tokens) -> list[float]:
    """Lin, 2004: the longest common subsequence."""
    from pycocoevalcap.rouge.rouge import Rouge

    return [Rouge().compute_score(given, said)[0]]


def cider(given: Tokens, said: Tokens) -> list[float]:
    """Vedantam et al., 2015: n-grams weighted by how telling they are among the references of all images."""
    from pycocoevalcap.cider.cider import Cider

    return [Cider().compute_score(given, said)[0]]


def spice(given: Tokens, said: Tokens) -> list[float]:
    """Anderson et al., 2016: objects, attributes and relations that both speak of."""
    from pycocoevalcap.spice import spice as package

    java()
    models = Path(package.__file__).parent / "lib"
    if len(list(models.glob("stanford-corenlp-3.6.0*.jar"))) < 2:  # pycocoevalcap would download them now
        raise FileNotFoundError(f"its models are missing; {GET_SPICE}")
    return [package.Spice().compute_score(given, said)[0]]


SCORERS = dict(zip(CAPTION_SCORES, (bleu, meteor, rouge, cider, spice), strict=True))


def java() -> str:
    """The path of Java."""
    found = shutil.which("java")
    if found is None:
        raise FileNotFoundError("Java is not installed")
    return found


def reason(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@cache
def warn_once(line: str) -> None:
    """Logs a line, unless it has been logged before: every epoch would say the same."""
    logger.warning(line)

"""CLIP's text cleaning and byte-pair encoding, id for id as open_clip's."""

import functools
import html
import lzma
import string
from collections.abc import Sequence
from pathlib import Path

import regex
from tokenizers.models import BPE

from clip_jax.data.tokenizers.base import Tokenizer, TokenizerFormat

# OpenAI's vocabulary (github.com/openai/CLIP, MIT License): one merge a line, best first.
MERGES_FILE = Path(__file__).with_name("clip_merges.txt.xz")

SPECIALS = ("<start_of_text>", "<end_of_text>")
WORDS = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ClipTokenizer(Tokenizer):
    """The lower-cased byte-pair encoding of OpenAI's models, with open_clip's text cleaning."""

    kind = "clip"
    vocab_size = 49_408
    start_ids = (49_406,)
    end_id = 49_407

    def __init__(self, context_length: int = 77):
        self.context_length = context_length
        self._check_context()

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [encode(text) for text in texts]


FORMAT = TokenizerFormat(ClipTokenizer)


def encode(text: str) -> list[int]:
    """The ids of a text, without start and end token."""
    ids = []
    for word in WORDS.findall(clean(text)):
        ids += _known_ids_of(word) if len(word) <= 64 else _ids_of(word)
    return ids


def _ids_of(word: str) -> tuple[int, ...]:
    if word in SPECIALS:
        return (vocabulary()[0][word],)
    symbols = byte_symbols()
    pieces = _merger().tokenize("".join(symbols[byte] for byte in word.encode()))
    return tuple(piece.id for piece in pieces)


# Captions have few different words, and those again and again.
_known_ids_of = functools.lru_cache(maxsize=65_536)(_ids_of)


@functools.cache
def _merger() -> BPE:
    ids, ranks = vocabulary()
    return BPE(ids, list(ranks), end_of_word_suffix="</w>")


def clean(text: str) -> str:
    """Mend mojibake, resolve HTML entities, collapse white space and lower the case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):
        # On other texts these change nothing and take most of the time.
        text = mend(text)
    return " ".join(text.split()).lower()


def mend(text: str) -> str:
    """Mend mojibake, and resolve HTML entities twice, as open_clip does."""
    import ftfy  # here, as it is slow to import and most texts do not need it

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def canonicalize(text: str) -> str:
    """SigLIP's cleaning, which also drops punctuation."""
    text = mend(text)
    text = text.replace("_", " ").translate(WITHOUT_PUNCTUATION).lower()
    return " ".join(text.split())


@functools.cache
def vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """The id of every piece, and the rank of every merge of two pieces."""
    lines = lzma.decompress(MERGES_FILE.read_bytes()).decode().split("\n")
    merges = [tuple(line.split(" ")) for line in lines]
    # Ids follow the order in which OpenAI listed the bytes, printable ones first.
    symbols = sorted(byte_symbols(), key=_is_shifted)
    singles = [byte_symbols()[byte] for byte in symbols]
    pieces = [*singles, *(s + "</w>" for s in singles), *(a + b for a, b in merges), *SPECIALS]
    return {piece: i for i, piece in enumerate(pieces)}, {pair: i for i, pair in enumerate(merges)}


@functools.cache
def byte_symbols() -> dict[int, str]:
    """A visible character for every byte: itself if it is one, else one from U+0100 on."""
    shifted = iter(range(256, 512))
    return {byte: chr(next(shifted) if _is_shifted(byte) else byte) for byte in range(256)}


def _is_shifted(byte: int) -> bool:
    return not (0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF)

"""Token counters: exact by tiktoken or by a policy's own ``tokenizer.json``, or a labelled estimate."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import tiktoken
    import tokenizers

    from agemem_mcp.domain.ports import TokenCounter

O200K = "o200k_base"
ESTIMATE = "estimate"
RANKS_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"
"""SHA-1 of the address of o200k_base's ranks: the name tiktoken looks for."""
RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

_PIECE_CHARS = 50_000
_CACHE_VARIABLE = "TIKTOKEN_CACHE_DIR"
_log = structlog.get_logger(__name__)
_environment_lock = threading.Lock()


def load_token_counter(name_or_path: str, tiktoken_dir: Path) -> TokenCounter:
    """The counter for a tokenizer; never downloads. Blocking (0.6 s for o200k_base), so load it in a thread.

    Args:
        name_or_path: ``o200k_base``, ``estimate``, or the path of a ``tokenizer.json``.
        tiktoken_dir: where ``agemem-mcp assets pull`` puts the ranks. Without whole ranks there,
            ``o200k_base`` becomes the estimate, which says so of itself.

    Raises:
        ConfigurationError: there is no such tokenizer, or its file cannot be read.
    """
    if name_or_path == ESTIMATE:
        return ApproximateTokenCounter()
    if name_or_path == O200K:
        return _load_o200k(tiktoken_dir)
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        message = f"No tokenizer {name_or_path!r}: use {O200K!r}, {ESTIMATE!r}, or the path of a tokenizer.json file."
        raise ConfigurationError(message)
    return _load_file(path)


class TiktokenCounter:
    """Exact counts by a tiktoken encoding."""

    approximate = False

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding

    @property
    def name(self) -> str:
        """The encoding's name."""
        return self._encoding.name

    def count(self, text: str) -> int:
        """Number of tokens; see ``split_for_counting`` for texts beyond 50,000 characters."""
        return sum(len(self._encoding.encode_ordinary(piece)) for piece in split_for_counting(text))


class FileTokenCounter:
    """Exact counts by a ``tokenizer.json``."""

    approximate = False

    def __init__(self, name: str, tokenizer: tokenizers.Tokenizer) -> None:
        self._name = name
        self._tokenizer = tokenizer

    @property
    def name(self) -> str:
        """Folder and file the tokenizer came from."""
        return self._name

    def count(self, text: str) -> int:
        """Number of tokens without those a model puts around a text."""
        # the library takes no lone surrogates, which JSON input can contain
        clean = text.encode("utf-8", "replace").decode("utf-8")
        return len(self._tokenizer.encode(clean, add_special_tokens=False).ids)


class ApproximateTokenCounter:
    """Estimates o200k_base by what its split pattern would make of the text; needs no files.

    The rules of the pattern are followed where they decide by themselves (a space belongs to the
    following word, digits go by three, line breaks join the punctuation before them); for the rest
    there is one cost per piece and one per further character, fitted for each script.

    Error of the total against the exact count, on texts it was neither fitted nor checked on before
    (in brackets that of characters / 4): English encyclopaedia -3 % (+9), our design notes -7 % (-8),
    JSON +1 % (+6), JSON records of ids and numbers -1 % (-39), Python +10 % (0; single files up to
    +40 %), Spanish +3 % (-11), Chinese -14 % (-64, traditional), Ukrainian -16 % (-37), Polish -18 %
    (-32); fewer than 1,200 characters each of Chinese (simplified) -2 % (-66), Japanese -7 % (-67),
    Russian -9 % (-39), Arabic -8 % (-41). Runs of one repeated character are overestimated.
    """

    name = ESTIMATE
    approximate = True

    def count(self, text: str) -> int:
        """Estimated number of tokens, at least 1 for a text that is not empty."""
        total = 0.0
        for match in _PIECE.finditer(text):
            kind = match.lastgroup or "other"
            length = match.end() - match.start()
            if kind == "digits":
                total += -(-length // 3)
            elif kind == "latin":
                total += _LATIN_FIRST + _LATIN_FURTHER * max(0, length - _LATIN_FREE)
            elif kind == "ascii":
                first, further = _COSTS[kind]
                total += first + further * (len(match.group().rstrip("\r\n")) - 1)
            else:
                first, further = _COSTS[kind]
                total += first + further * (length - 1)
        return max(round(total), 1) if text else 0


_PIECE = re.compile(
    r"""
      (?P<digits>[0-9]+)
    | (?P<gap>[ ](?=[0-9]))          # the pattern lets no space into a number
    | (?P<latin>[A-Z]?[a-z]+|[A-Z]+)
    | (?P<accented>[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+)
    | (?P<greek>[\u0370-\u03ff]+)
    | (?P<cyrillic>[\u0400-\u052f]+)
    | (?P<semitic>[\u0590-\u08ff]+)
    | (?P<indic>[\u0900-\u0dff]+)
    | (?P<southeast>[\u0e00-\u109f\u1780-\u17ff]+)
    | (?P<kana>[\u3040-\u30ff]+)
    | (?P<han>[\u2e80-\u303f\u3100-\u9fff\uf900-\ufaff\uff00-\uffef]+)
    | (?P<hangul>[\u1100-\u11ff\uac00-\ud7af]+)
    | (?P<lines>\s*[\r\n]+)
    | (?P<indent>[^\S\r\n]{2,})
    | (?P<space>\s)
    | (?P<ascii>[!-/:-@\[-`{-~]+[\r\n]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_LATIN_FIRST, _LATIN_FURTHER, _LATIN_FREE = 0.99, 0.22, 6
_COSTS = {
    "gap": (1.0, 0.0),
    "accented": (0.32, 0.49),
    "greek": (0.60, 0.43),
    "cyrillic": (1.27, 0.11),
    "semitic": (0.87, 0.24),
    "indic": (0.42, 0.42),
    "southeast": (0.42, 0.42),
    "kana": (0.63, 0.63),
    "han": (0.68, 0.68),
    "hangul": (0.72, 0.72),
    "lines": (1.0, 0.02),
    "indent": (1.0, 0.008),
    "space": (0.0, 0.0),
    "ascii": (0.44, 0.88),
    "other": (1.15, 0.0),
}
"""Per kind of piece: tokens for its first character, and for each further one."""


def split_for_counting(text: str) -> Iterator[str]:
    """Pieces of at most 50,000 characters whose counts add up to that of the whole.

    tiktoken fails on a run of a million spaces: its pattern engine runs out of stack. Pieces end
    where every piece of o200k_base's pattern ends: between a character that is no white space and a
    space, or between a line break and a letter or digit. Only where 50,000 characters in a row
    have no such place is the cut arbitrary, and the sum off by a token or two per cut.
    """
    start = 0
    while len(text) - start > _PIECE_CHARS:
        end = _last_boundary(text, start, start + _PIECE_CHARS)
        yield text[start:end]
        start = end
    yield text[start:]


def _last_boundary(text: str, start: int, limit: int) -> int:
    for mark in (" ", "\n"):
        place = limit
        while (place := text.rfind(mark, start + 1, place)) > start:
            if mark == " " and not text[place - 1].isspace():
                return place
            if mark == "\n" and text[place + 1].isalnum():
                return place + 1
    return limit


def _load_o200k(tiktoken_dir: Path) -> TokenCounter:
    ranks = tiktoken_dir / RANKS_FILE
    try:
        whole = hashlib.sha256(ranks.read_bytes()).hexdigest() == RANKS_SHA256
    except FileNotFoundError:
        _log.info("tokens_estimated", reason=f"{O200K} is not installed", cure="agemem-mcp assets pull")
        return ApproximateTokenCounter()
    except OSError as error:
        _log.warning("tokens_estimated", reason=str(error), cure="make the file readable")
        return ApproximateTokenCounter()
    if not whole:
        # handed a damaged file, tiktoken deletes it and downloads another, without a time-out
        _log.warning("tokens_estimated", reason=f"{ranks} is damaged", cure="agemem-mcp assets pull")
        return ApproximateTokenCounter()
    import tiktoken  # noqa: PLC0415  0.1 s, not needed by a policy with its own tokenizer

    with _tiktoken_folder(tiktoken_dir):
        return TiktokenCounter(tiktoken.get_encoding(O200K))


@contextlib.contextmanager
def _tiktoken_folder(folder: Path) -> Generator[None]:
    """Point tiktoken at a folder; an environment variable is the only way it offers."""
    with _environment_lock:
        before = os.environ.get(_CACHE_VARIABLE)
        os.environ[_CACHE_VARIABLE] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_CACHE_VARIABLE]
            else:
                os.environ[_CACHE_VARIABLE] = before


def _load_file(path: Path) -> TokenCounter:
    import tokenizers  # noqa: PLC0415  as for tiktoken

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
        message = f"{path} cannot be read as a tokenizer.json ({error}). Point to the one of your model."
        raise ConfigurationError(message) from error
    # files made for a model cut texts to its length, or fill them up to it
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # reads them as plain text
    return FileTokenCounter(f"{path.parent.name}/{path.name}", tokenizer)

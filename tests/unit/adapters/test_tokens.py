"""Token counters: exact where the files are there, a labelled estimate where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from agemem_mcp.adapters import tokens
from agemem_mcp.adapters.tokens import (
    RANKS_FILE,
    ApproximateTokenCounter,
    TiktokenCounter,
    load_token_counter,
    split_for_counting,
)
from agemem_mcp.errors import ConfigurationError

TEXTS = {
    "prose": "The user prefers green tea to coffee, but only in the morning; in 2024 it was the other way round. " * 20,
    "json": '[{"id": "m0007", "score": 0.7887, "at": "2026-05-08T10:07:00Z", "ok": true, "n": 259}]\n' * 20,
    "code": "def add(left: int, right: int) -> int:\n    total = left + right\n    return total\n\n" * 20,
    "chinese": "用户喜欢绿茶,不喜欢咖啡。他住在上海,在一家小公司工作。\n" * 20,
    "russian": "Пользователь предпочитает зелёный чай и живёт в Москве рядом.\n" * 20,
    "japanese": "利用者は緑茶が好きで、東京に住んでいます。カメラを買いました。\n" * 20,
}


@pytest.fixture(scope="module")
def assets_dir() -> Path:
    """A folder filled by `agemem-mcp assets pull`."""
    folder = os.environ.get("AGEMEM_ASSETS_DIR")
    if not folder:
        pytest.skip("AGEMEM_ASSETS_DIR names no folder with the real tokenizer")
    return Path(folder)


@pytest.fixture
def word_tokenizer(tmp_path: Path) -> Path:
    """A tokenizer.json that knows four words, cuts at two tokens and pads to sixteen."""
    vocabulary = {"[UNK]": 0, "tea": 1, "green": 2, "[PAD]": 3, "likes": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=16, pad_id=3)
    path = tmp_path / "policy" / "tokenizer.json"
    path.parent.mkdir()
    tokenizer.save(str(path))
    return path


def test_without_the_ranks_o200k_base_becomes_an_estimate_that_says_so(tmp_path: Path) -> None:
    counter = load_token_counter("o200k_base", tmp_path)
    assert (counter.name, counter.approximate) == ("estimate", True)


def test_damaged_ranks_are_left_alone_and_never_downloaded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("tiktoken was asked, which would delete the file and download")

    monkeypatch.setattr("tiktoken.get_encoding", refuse)
    (tmp_path / RANKS_FILE).write_bytes(b"half a file")
    assert load_token_counter("o200k_base", tmp_path).approximate
    assert (tmp_path / RANKS_FILE).read_bytes() == b"half a file"


def test_an_unknown_tokenizer_is_refused_with_what_would_be_accepted(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"o200k_base.*tokenizer\.json"):
        load_token_counter("cl100k_base", tmp_path)


def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="cannot be read as a tokenizer"):
        load_token_counter(str(path), tmp_path)


def test_a_tokenizer_file_counts_all_of_a_text_without_its_truncation_and_padding(word_tokenizer: Path) -> None:
    counter = load_token_counter(str(word_tokenizer), word_tokenizer.parent)
    assert counter.count("likes green tea") == 3
    assert counter.count("likes green tea and more") == 5
    assert counter.count("") == 0
    assert (counter.name, counter.approximate) == ("policy/tokenizer.json", False)


def test_a_tokenizer_file_takes_lone_surrogates(word_tokenizer: Path) -> None:
    assert load_token_counter(str(word_tokenizer), word_tokenizer.parent).count("green \ud800 tea") == 3


def test_the_estimate_of_nothing_is_nothing_and_of_anything_at_least_one() -> None:
    counter = ApproximateTokenCounter()
    assert counter.count("") == 0
    assert counter.count(" ") == 1


def test_the_estimate_counts_numbers_by_three_digits_and_the_space_before_them() -> None:
    counter = ApproximateTokenCounter()
    assert counter.count("1234567890") == 4
    assert counter.count("1234567890 123") == 6


def test_the_estimate_takes_a_megabyte_of_white_space_in_linear_time() -> None:
    counter = ApproximateTokenCounter()
    for mark in (" ", "\u00a0", "\n", "\t\u00a0"):
        # quadratic time would be hours; the count itself matters little
        assert counter.count(mark * 1_000_000) > 100


def test_pieces_of_a_long_text_are_the_text_and_are_short() -> None:
    text = "hello world, " * 20_000 + " " * 120_000 + "的" * 60_000
    pieces = list(split_for_counting(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 50_000
    assert len(pieces) > 8


@pytest.fixture(scope="module")
def exact(assets_dir: Path) -> TiktokenCounter:
    counter = load_token_counter("o200k_base", assets_dir / "tiktoken")
    assert isinstance(counter, TiktokenCounter)
    return counter


def test_o200k_base_counts_as_published(exact: TiktokenCounter) -> None:
    assert (exact.name, exact.approximate) == ("o200k_base", False)
    assert exact.count("hello world") == 2
    assert exact.count("") == 0


def test_special_tokens_are_read_as_plain_text(exact: TiktokenCounter) -> None:
    assert exact.count("<|endoftext|>") > 1


def test_loading_leaves_the_environment_as_it_was(assets_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/somewhere/else")
    load_token_counter("o200k_base", assets_dir / "tiktoken")
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/somewhere/else"


def test_a_million_spaces_are_counted_although_tiktoken_alone_fails(exact: TiktokenCounter) -> None:
    assert 7_000 < exact.count(" " * 1_000_000) < 9_000


@pytest.mark.parametrize("kind", ["prose", "json", "code", "russian"])
def test_splitting_at_spaces_and_line_breaks_does_not_change_the_count(
    kind: str, exact: TiktokenCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exact.count(TEXTS[kind])
    monkeypatch.setattr(tokens, "_PIECE_CHARS", 100)
    assert len(list(split_for_counting(TEXTS[kind]))) > 5
    assert exact.count(TEXTS[kind]) == whole


@pytest.mark.parametrize("kind", TEXTS)
def test_the_estimate_is_nearer_than_a_quarter_of_the_characters(kind: str, exact: TiktokenCounter) -> None:
    truth = exact.count(TEXTS[kind])
    error = abs(ApproximateTokenCounter().count(TEXTS[kind]) / truth - 1)
    naive = abs(len(TEXTS[kind]) / 4 / truth - 1)
    assert error < 0.25
    assert error < max(naive, 0.1)

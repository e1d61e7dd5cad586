"""Processes that meet the same texts: each is told once what the others embedded."""

from __future__ import annotations

import numpy as np

from agemem_training.vectors import NotingCache, VectorBoard, Vectors


def vectors(*keys: bytes) -> Vectors:
    return {key: np.array([len(key)], np.float32) for key in keys}


def test_a_cache_tells_once_what_was_embedded_here_and_never_what_it_heard() -> None:
    cache = NotingCache()
    cache.put(vectors(b"a", b"bb"))
    cache.hear(vectors(b"ccc"))
    assert set(cache.news()) == {b"a", b"bb"}
    assert cache.news() == {}
    cache.put(vectors(b"dddd"))
    assert set(cache.news()) == {b"dddd"}
    assert set(cache.get([b"a", b"bb", b"ccc", b"dddd", b"e"])) == {b"a", b"bb", b"ccc", b"dddd"}


def test_each_reader_is_told_once_what_others_put_up() -> None:
    board = VectorBoard()
    first, second = board.join(), board.join()
    board.put_up(first, vectors(b"a"))
    board.put_up(second, vectors(b"bb"))
    assert set(board.news_for(first)) == {b"bb"}
    assert set(board.news_for(second)) == {b"a"}
    assert board.news_for(first) == board.news_for(second) == {}
    board.put_up(first, vectors(b"ccc"))
    assert set(board.news_for(second)) == {b"ccc"}
    assert set(board.news_for(board.join())) == {b"a", b"bb", b"ccc"}

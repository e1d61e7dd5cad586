"""The word tokenizer: nothing of a turn is lost, and what is copied is the same token wherever it stands."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("transformers", reason="the extra `local` is not installed")

from tests.unit.training.mini.stories_told import mini_tokenizer
from transformers import AutoTokenizer

from agemem_policies.protocol import Call, Turn, render
from agemem_training.mini.tokenizer import END, UNKNOWN_WORD, build_tokenizer, fixed_parts
from agemem_training.tasks.synthetic import LEVELS, Stories
from agemem_training.tasks.synthetic.names import FOODS, MONTHS, PARTS

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [head + tail for heads, tails in PARTS.values() for head in heads for tail in tails]
MESSAGES = [
    {"role": "system", "content": "You manage memory."},
    {"role": "user", "content": "Maria likes tea."},
    {"role": "assistant", "content": "<think>done</think><answer>ok</answer>"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return mini_tokenizer()


def there_and_back(tokenizer: Any, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text))


def turns(text: str, memory_id: str = "mem_12") -> list[Turn]:
    """A turn with each of the tools, and an answer."""
    calls = [
        Call("Add_memory", {"content": text, "memory_type": "fact"}),
        Call("Update_memory", {"memory_id": memory_id, "content": text}),
        Call("Delete_memory", {"memory_id": memory_id, "confirmation": True}),
        Call("Retrieve_memory", {"query": text}),
        Call("Filter_context", {"criteria": text}),
        Call("Summary_context", {"span": "all", "summary": text}),
    ]
    return [*(Turn(f"{memory_id} {text}", (call,)) for call in calls), Turn(text, answer=text)]


def shown(text: str) -> list[str]:
    """What a policy is shown besides turns."""
    return [
        text,
        f"<tool_response>\n{text}\n</tool_response>",
        f"<retrieved_memories>\n[mem_3] (2026-11-28, fact) {text}\n[mem_14] (2024-01-31) {text}\n</retrieved_memories>",
        f"<summary>\n{text}\n</summary>",
    ]


@pytest.mark.parametrize("name", ["Maria", *FOODS, *MONTHS])
def test_turns_of_all_tools_and_what_is_shown_come_back_as_they_were(tokenizer: Any, name: str) -> None:
    for text in (*map(render, turns(f"{name} likes 3 {name}.")), *shown(f"{name} likes 3 {name}.")):
        assert there_and_back(tokenizer, text) == text


@given(
    name=st.sampled_from(NAMES),
    other=st.sampled_from([*NAMES, *FOODS, *MONTHS]),
    number=st.integers(0, 999_999),
    memory=st.integers(1, 99),
)
def test_any_names_and_numbers_come_back_as_they_were(name: str, other: str, number: int, memory: int) -> None:
    sentence = f"The door code of {name} is {number:04d}, and {other}: {number}."
    for text in (*map(render, turns(sentence, f"mem_{memory}")), *shown(sentence)):
        assert there_and_back(mini_tokenizer(), text) == text


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_whatever_a_story_says_comes_back_as_it_was(tokenizer: Any, level: str, split: Any) -> None:
    for task in islice(Stories(level).tasks(split, seed=4), 40):
        for text in (*task.messages, *task.distractors, *task.background, task.query, task.answer):
            assert there_and_back(tokenizer, text) == text


def test_a_made_up_name_is_its_head_and_its_tail() -> None:
    heads, tails = ([part for one in PARTS.values() for part in one[place]] for place in (0, 1))
    # Names of practice too, such as a person called Marton, though the tokenizer is made from what drills say.
    tokenizer = build_tokenizer([f"{head}{tail} works." for head in heads for tail in tails])
    for head in heads:
        for tail in tails:
            assert tokenizer.tokenize(head + tail) == [head, f"##{tail}"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("4071", ["40", "##71"]),
        ("407", ["40", "##7"]),
        ("3 May", ["3", "May"]),
        ("mem_7", ["mem_7"]),
        ("[mem_7]", ["[", "mem_7", "]"]),
        ("(2026-11-28)", ["(", "2026-", "11-", "28", ")"]),
    ],
)
def test_numbers_ids_and_dates_are_few_tokens(tokenizer: Any, text: str, tokens: list[str]) -> None:
    assert tokenizer.tokenize(text) == tokens


def test_each_fixed_part_is_one_token(tokenizer: Any) -> None:
    for part in fixed_parts():
        assert tokenizer.tokenize(part) == [part], part


def test_a_word_is_the_same_token_wherever_it_stands(tokenizer: Any) -> None:
    (tea,) = tokenizer.encode("tea")
    for text in ("tea", "likes tea.", '"tea"', "\ntea", '{"query": "tea"}', "<answer>tea</answer>"):
        assert tea in tokenizer.encode(text), text


def test_unknown_words_are_spelled(tokenizer: Any) -> None:
    assert tokenizer.tokenize("Xqz") == ["X", "##q", "##z"]
    assert there_and_back(tokenizer, "Xqz likes zzyzx 987654321.") == "Xqz likes zzyzx 987654321."
    assert UNKNOWN_WORD not in tokenizer.tokenize("Zyx mem_abc9 8f3k-22 {}!?")
    assert tokenizer.tokenize("é") == [UNKNOWN_WORD]


def test_random_ids_are_spelled_and_come_back(tokenizer: Any) -> None:
    for memory_id in ("mem_8f3k", "mem_0000", "mem_zzzz9"):
        assert there_and_back(tokenizer, f"Stored as {memory_id}.") == f"Stored as {memory_id}."


def test_a_chat_is_its_roles_and_messages_with_an_end_each(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text == (
        f"<|system|>You manage memory.{END}<|user|>Maria likes tea.{END}"
        f"<|assistant|><think>done</think><answer>ok</answer>{END}<|assistant|>"
    )
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode(text)
    assert ids.count(tokenizer.eos_token_id) == 3
    assert tokenizer.convert_tokens_to_ids("<|assistant|>") == ids[-1]


def test_a_saved_tokenizer_is_the_same_when_it_is_loaded(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for text in (*map(render, turns("Toris likes tea.")), *shown("Xqz likes 4071 of them.")):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert there_and_back(loaded, text) == text
    assert loaded.apply_chat_template(MESSAGES) == tokenizer.apply_chat_template(MESSAGES)
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == (
        tokenizer.pad_token,
        tokenizer.eos_token,
        tokenizer.unk_token,
    )

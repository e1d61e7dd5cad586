"""The local policy on checkpoints written on the spot, compared with what transformers itself says."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from agemem_mcp.errors import ProviderError
from agemem_policies.local import LocalPolicy
from agemem_policies.policy import ChatMessage, Completion, Prompt

WHY = "a model in this process needs torch and transformers: `pip install 'agemem-mcp[local]'`"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from tests.unit.policies.local.tiny_checkpoint import WINDOW, write_random, write_script  # noqa: E402  as above

from agemem_policies.local.generation import Batch  # noqa: E402  after the skip

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

TEXTS = ["hello", "a much longer question about green tea and what Alice likes", "é", "x" * 80]


Opened: TypeAlias = "Callable[..., LocalPolicy]"
Batches: TypeAlias = "list[list[tuple[int, ...]]]"
Hold: TypeAlias = "Callable[[Callable[[], Awaitable[None]]], None]"


def prompt_of(text: str) -> Prompt:
    return Prompt((ChatMessage("user", text),))


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("random") / "tiny")


@pytest.fixture
async def opened() -> AsyncGenerator[Opened]:
    """Makes policies that are closed after the test."""
    policies: list[LocalPolicy] = []

    def make(*given: Any, **options: Any) -> LocalPolicy:
        policies.append(LocalPolicy(*given, **options))
        return policies[-1]

    yield make
    for policy in policies:
        await policy.close()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    """The prompts that were in the batch, for each token sampled."""
    seen: list[list[tuple[int, ...]]] = []
    original = Batch.sample

    def spy(batch: Batch) -> None:
        if batch.rows:
            seen.append([row.prompt_ids for row in batch.rows])
        original(batch)

    monkeypatch.setattr(Batch, "sample", spy)
    return seen


@pytest.fixture
async def after_first_token(monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Has the model wait, when the first token was sampled, until something is done on the event loop."""
    original = Batch.advance
    loop = asyncio.get_running_loop()

    def hold(act: Callable[[], Awaitable[None]]) -> None:
        async def done() -> None:
            await act()

        def advance(batch: Batch) -> None:
            if batch.rows:
                monkeypatch.setattr(Batch, "advance", original)
                asyncio.run_coroutine_threadsafe(done(), loop).result(60)
            original(batch)

        monkeypatch.setattr(Batch, "advance", advance)

    return hold


def full_pass(folder: Path, done: Completion) -> Any:
    """Logits of one forward pass over prompt and answer, for each token of the answer [A, V]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*done.prompt_ids, *done.action_ids]])).logits[0].float()
    return logits[len(done.prompt_ids) - 1 : -1]


def generated(folder: Path, done: Completion) -> tuple[int, ...]:
    """What transformers' own greedy generation says to the same prompt."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([done.prompt_ids])
    given = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(done.action_ids), pad_token_id=0
    )
    return tuple(given[0, len(done.prompt_ids) :].tolist())


async def test_greedy_tokens_and_their_logprobs_are_those_of_transformers(random_model: Path, opened: Opened) -> None:
    policy = opened(random_model, max_tokens=40)
    for text in TEXTS:
        done = await policy.act(prompt_of(text))
        assert done.action_ids == generated(random_model, done)
        expected = full_pass(random_model, done).log_softmax(-1)[range(40), list(done.action_ids)]
        torch.testing.assert_close(torch.tensor(done.logprobs), expected, atol=1e-4, rtol=0)
        assert (done.prompt_tokens, done.completion_tokens, done.cut_off) == (len(done.prompt_ids), 40, True)


async def test_sampled_tokens_come_with_the_logprobs_of_the_distribution_at_that_temperature(
    random_model: Path, opened: Opened
) -> None:
    done = await opened(random_model, max_tokens=40, temperature=1.7, seed=3).act(prompt_of("hello"))
    logits = full_pass(random_model, done)
    expected = (logits / 1.7).log_softmax(-1)[range(40), list(done.action_ids)]
    torch.testing.assert_close(torch.tensor(done.logprobs), expected, atol=1e-4, rtol=0)
    assert done.action_ids != tuple(logits.argmax(-1).tolist())


async def test_sampling_follows_the_distribution(random_model: Path, opened: Opened) -> None:
    policy = opened(random_model, max_tokens=1, temperature=2.0, seed=0, max_rows=500)
    several = await asyncio.gather(*(policy.act(prompt_of("hello")) for _ in range(4000)))
    probs = (full_pass(random_model, several[0])[0] / 2.0).softmax(-1)
    counts = torch.bincount(torch.tensor([done.action_ids[0] for done in several]), minlength=len(probs))
    likely = probs * 4000 > 20
    # each count is within five standard deviations of what is expected
    assert likely.sum() > 5
    assert ((counts - probs * 4000).abs() < 5 * (probs * 4000).sqrt())[likely].all()


async def test_top_p_draws_among_the_most_probable_alone(random_model: Path, opened: Opened) -> None:
    done = await opened(random_model, max_tokens=60, temperature=2.0, top_p=0.5, seed=1).act(prompt_of("hello"))
    probs = (full_pass(random_model, done) / 2.0).softmax(-1)
    chosen = probs[range(60), list(done.action_ids)]
    more_probable = (probs * (probs > chosen[:, None])).sum(-1)
    assert (more_probable < 0.5 + 1e-4).all()
    least = await opened(random_model, max_tokens=60, temperature=2.0, top_p=1e-9, seed=1).act(prompt_of("hello"))
    assert least.action_ids == (await opened(random_model, max_tokens=60).act(prompt_of("hello"))).action_ids


@pytest.fixture(scope="module")
def sliding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose second layer remembers the last 16 tokens alone."""
    folder = tmp_path_factory.mktemp("sliding") / "tiny"
    return write_random(folder, use_sliding_window=True, sliding_window=16, max_window_layers=1)


@pytest.fixture(params=["full", "sliding"])
def any_model(request: pytest.FixtureRequest, random_model: Path, sliding_model: Path) -> Path:
    return random_model if request.param == "full" else sliding_model


@pytest.mark.parametrize("max_rows", [4, 3, 2])
async def test_rows_of_different_lengths_get_together_what_they_get_alone(
    any_model: Path, opened: Opened, batches: Batches, max_rows: int
) -> None:
    # the longest prompt has least room in the window: it leaves first, and with fewer rows others join then
    policy = opened(any_model, max_tokens=60, window=150, max_rows=max_rows)
    alone = [await policy.act(prompt_of(text)) for text in reversed(TEXTS)]
    assert [len(done.action_ids) for done in alone][:2] == [150 - len(alone[0].prompt_ids), 60]
    batches.clear()
    together = await asyncio.gather(*(policy.act(prompt_of(text)) for text in reversed(TEXTS)))
    assert max(map(len, batches)) == max_rows
    for one, other in zip(alone, together, strict=True):
        assert one.action_ids == other.action_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


async def test_a_call_that_comes_later_joins_where_the_model_s_memory_allows_it(
    any_model: Path, sliding_model: Path, opened: Opened, batches: Batches, after_first_token: Hold
) -> None:
    policy = opened(any_model, max_tokens=30)
    later: list[asyncio.Task[Completion]] = []

    async def start_another() -> None:
        later.append(asyncio.ensure_future(policy.act(prompt_of(TEXTS[1]))))
        await asyncio.sleep(0)  # to its first await

    after_first_token(start_another)
    first = await policy.act(prompt_of("hello"))
    second = await later[0]
    assert first.action_ids == generated(any_model, first)
    assert second.action_ids == generated(any_model, second)
    waits = [1] * 60
    assert [len(rows) for rows in batches] == (waits if any_model == sliding_model else [1, 1, *[2] * 28, 1, 1])


async def test_no_more_calls_generate_at_once_than_allowed(
    random_model: Path, opened: Opened, batches: Batches
) -> None:
    policy = opened(random_model, max_tokens=3, max_rows=2)
    together = await asyncio.gather(*(policy.act(prompt_of(text)) for text in TEXTS))
    assert max(map(len, batches)) == 2
    assert [len(done.action_ids) for done in together] == [3] * 4


async def test_a_short_turn_is_answered_before_a_long_one_beside_it_ends(
    tmp_path: Path, opened: Opened, batches: Batches
) -> None:
    folder = write_script(tmp_path / "script", ["L", *"abcdefghijk"], ["S", "z"])
    policy = opened(folder)
    order: list[str] = []

    async def act(text: str) -> None:
        order.append((await policy.act(prompt_of(text))).text)

    await asyncio.gather(act("L"), act("S"))
    assert order == ["z", "abcdefghijk"]
    # what is done leaves the batch at once
    assert sum(map(len, batches)) == 12 + 2


@pytest.mark.parametrize(("tag", "tail"), [("</tool_call>", "\n"), ("</answer>", " and more")])
async def test_a_turn_ends_with_a_closing_tag_and_its_tokens_stay_as_sampled(
    tmp_path: Path, opened: Opened, tag: str, tail: str
) -> None:
    folder = write_script(tmp_path / "script", ["?", "Yes ", tag[:5], tag[5:] + tail, "no"])
    pieces: list[str] = []
    done = await opened(folder).act(prompt_of("?"), pieces.append)
    assert done.text == f"Yes {tag}"
    assert pieces == ["Yes ", tag[:5], tag[5:]]
    assert not done.cut_off
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(done.action_ids) == f"Yes {tag}{tail}"


@pytest.mark.parametrize("end", ["<|im_end|>", "<|eot|>", "<|endoftext|>"])
async def test_every_end_that_the_generation_config_names_ends_a_turn_and_is_no_text(
    tmp_path: Path, opened: Opened, end: str
) -> None:
    folder = write_script(tmp_path / "script", ["?", "o", "k", end, "x"], ends=("<|eot|>", "<|endoftext|>"))
    done = await opened(folder).act(prompt_of("?"))
    assert (done.text, done.cut_off, len(done.action_ids)) == ("ok", False, 3)
    assert done.logprobs == pytest.approx([0, 0, 0], abs=1e-4)


async def test_pieces_are_whole_characters_told_on_the_event_loop_before_the_answer(
    tmp_path: Path, opened: Opened
) -> None:
    folder = write_script(tmp_path / "script", ["?", "n", "é", "日", "😀", "<|im_start|>", "!"])
    pieces: list[tuple[str, int]] = []
    done = await opened(folder).act(prompt_of("?"), lambda piece: pieces.append((piece, threading.get_ident())))
    assert pieces == [(piece, threading.get_ident()) for piece in ("n", "é", "日", "😀", "!")]
    assert done.text == "né日😀!"
    assert len(done.action_ids) == 1 + 2 + 3 + 4 + 1 + 1 + 1


async def test_random_bytes_are_told_in_pieces_that_make_up_the_text(random_model: Path, opened: Opened) -> None:
    policy = opened(random_model, max_tokens=200, temperature=1.0, seed=11)
    pieces: list[str] = []
    done = await policy.act(prompt_of("hello"), pieces.append)
    assert "".join(pieces) == done.text
    assert len(pieces) > 10
    tokenizer = transformers.AutoTokenizer.from_pretrained(random_model)
    shown = [one for one in done.action_ids if one < 256]
    assert tokenizer.decode(shown).startswith(done.text)


async def test_what_a_listener_raises_reaches_the_caller_and_frees_the_row(
    tmp_path: Path, opened: Opened, batches: Batches
) -> None:
    folder = write_script(tmp_path / "script", ["?", "a", "b"], ["S", "z"])
    policy = opened(folder)

    def listen(piece: str) -> None:
        raise LookupError(piece)

    with pytest.raises(LookupError, match="a"):
        await policy.act(prompt_of("?"), listen)
    assert (await policy.act(prompt_of("S"))).text == "z"


async def test_a_cancelled_call_leaves_the_batch_and_the_others_go_on(
    random_model: Path, opened: Opened, batches: Batches, after_first_token: Hold
) -> None:
    policy = opened(random_model, max_tokens=30)
    this, other = (asyncio.ensure_future(policy.act(prompt_of(text))) for text in ("é", "hello"))

    async def cancel_other() -> None:
        other.cancel()
        await asyncio.wait([other])

    after_first_token(cancel_other)
    done = await this
    assert other.cancelled()
    assert done.action_ids == generated(random_model, done)
    # the token that was under way is generated still
    assert [len(rows) for rows in batches] == [2, 2, *[1] * 28]


async def test_with_a_seed_a_row_samples_the_same_whoever_is_beside_it(random_model: Path, opened: Opened) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1.0, "seed": 42}
    alone = [(await opened(random_model, **options).act(prompt_of(text))).action_ids for text in TEXTS]
    together = opened(random_model, **options)
    several = await asyncio.gather(*(together.act(prompt_of(text)) for text in reversed(TEXTS)))
    assert [done.action_ids for done in reversed(several)] == alone


async def test_the_same_prompt_asked_again_is_answered_otherwise_and_a_seed_repeats_the_whole(
    random_model: Path, opened: Opened
) -> None:
    async def group(seed: int | None) -> set[tuple[int, ...]]:
        policy = opened(random_model, max_tokens=30, temperature=1.0, seed=seed)
        return {done.action_ids for done in await asyncio.gather(*(policy.act(prompt_of("hello")) for _ in range(4)))}

    first, again, other, unseeded = await group(1), await group(1), await group(2), await group(None)
    assert first == again
    assert [len(one) for one in (first, other, unseeded)] == [4, 4, 4]
    assert first.isdisjoint(other | unseeded)


@pytest.mark.parametrize("window", [None, 200])
async def test_a_prompt_that_leaves_no_room_is_refused_and_says_how_long_it_is(
    random_model: Path, opened: Opened, window: int | None
) -> None:
    policy = opened(random_model, window=window)
    limit = window or WINDOW
    frame = len((await policy.act(prompt_of("x"))).prompt_ids) - 1
    longest = limit - limit // 4 - frame
    done = await policy.act(prompt_of("x" * longest))
    assert done.cut_off
    assert len(done.prompt_ids) + len(done.action_ids) == limit
    with pytest.raises(ProviderError, match=rf"has {limit - limit // 4 + 1} tokens.*window of {limit}"):
        await policy.act(prompt_of("x" * (longest + 1)))


async def test_a_model_that_gives_no_numbers_fails_the_call_with_advice(tmp_path: Path, opened: Opened) -> None:
    folder = write_random(tmp_path / "tiny")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(ProviderError, match=r"not numbers.*dtype=float32"):
        await opened(folder).act(prompt_of("hello"))


@pytest.mark.parametrize(
    ("error", "said"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "max_rows"), (RuntimeError("no kernel"), "no kernel")],
)
async def test_a_failing_pass_fails_its_calls_with_advice_and_the_next_one_works(
    random_model: Path,
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    policy = opened(random_model, max_tokens=5)
    for method in ("join", "advance"):
        with monkeypatch.context() as patched:
            original = getattr(Batch, method)

            def fail(batch: Batch, *given: Any, original: Callable[..., None] = original) -> None:
                if given or batch.rows:
                    raise error
                original(batch, *given)

            patched.setattr(Batch, method, fail)
            several = await asyncio.gather(*(policy.act(prompt_of(text)) for text in TEXTS), return_exceptions=True)
        assert all(isinstance(one, ProviderError) and said in str(one) for one in several)
    assert len((await policy.act(prompt_of("hello"))).action_ids) == 5


async def test_closing_fails_the_calls_that_run_or_wait_and_may_be_repeated(
    random_model: Path, opened: Opened, batches: Batches, after_first_token: Hold
) -> None:
    policy = opened(random_model, max_rows=1)
    closing: list[asyncio.Task[None]] = []

    async def close() -> None:
        closing.append(asyncio.ensure_future(policy.close()))
        await asyncio.sleep(0)  # to its first await

    after_first_token(close)
    several = await asyncio.gather(*(policy.act(prompt_of(text)) for text in TEXTS), return_exceptions=True)
    assert [str(one) for one in several] == ["The policy is closed."] * 4
    assert all(isinstance(one, ProviderError) for one in several)
    # not one error raised in four places, which would change it
    assert len(set(map(id, several))) == 4
    # the token that was under way is the last
    assert len(batches) == 2
    await closing[0]
    await policy.close()
    with pytest.raises(ProviderError, match="closed"):
        await policy.act(prompt_of("hello"))
    assert not [thread for thread in threading.enumerate() if thread is policy._worker]

"""The calls of a local model at work: who waits, who generates, who is answered. All in one thread."""

from __future__ import annotations

import hashlib
import traceback
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agemem_mcp.errors import AgeMemError, ProviderError
from agemem_policies.local.chat_ids import ChatEncoder
from agemem_policies.local.checkpoint import first_line, free_memory, is_out_of_memory, load_checkpoint
from agemem_policies.local.generation import Batch, Row
from agemem_policies.local.text_stream import TextStream
from agemem_policies.policy import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agemem_policies.local.calls import Call, Options

_ROOM_SHARE = 4
"""An answer must have room for ``max_tokens``, or for this part of the window if that is less."""
_PADDED_TOKENS = 32_768
"""Of the prompts that are read in one go: enough to keep a GPU busy, little enough to fit beside a model."""
_REMEMBERED_PROMPTS = 65_536


@dataclass(slots=True)
class _Turn:
    """A call that generates, or is about to."""

    call: Call
    row: Row
    stream: TextStream
    room: int
    """The most tokens that it may sample."""


class Engine:
    """A loaded model and its calls."""

    def __init__(self, folder: Path, options: Options) -> None:
        """Load the model.

        Raises:
            ConfigurationError: the folder cannot be used.
            ProviderError: the model does not fit into memory.
        """
        self._options = options
        loaded = load_checkpoint(folder, device=options.device, dtype=options.dtype)
        self._checkpoint = loaded
        self._encoder = ChatEncoder(loaded.tokenizer, loaded.eos_ids)
        self._silent_ids = self._encoder.control_ids | loaded.eos_ids
        self._window = options.window or loaded.window
        self._chances = _Chances(options.seed)
        self._ready: deque[_Turn] = deque()
        self._batch = self._new_batch()
        self._live: list[_Turn] = []
        """Row by row those of the batch."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to generate."""
        return bool(self._ready or self._live)

    def accept(self, call: Call) -> None:
        """Take in a call; it joins the others at the next token, or is told at once what is wrong with it."""
        if call.abandoned:
            return
        try:
            ids = tuple(self._encoder.encode(call.prompt.messages))
            room = self._room(len(ids))
        except Exception as error:  # noqa: BLE001  a template is a program of somebody else's; the caller must hear of it
            call.fail(_translated(error, "cannot read the prompt"))
            return
        stream = TextStream(self._checkpoint.tokenizer, self._silent_ids)
        self._ready.append(_Turn(call, Row(ids, self._chances.of(ids)), stream, room))

    def turn(self) -> None:
        """Generate one token for every call, after those that wait have joined where they can."""
        try:
            self._keep([turn for turn in self._live if not turn.call.abandoned])
            self._batch.advance()
            self._join()
            self._batch.sample()
            self._hand_out()
        except Exception as error:  # noqa: BLE001  whatever went wrong in the model, the callers must hear of it
            self._fail_all(error, self._live)
            self._live = []
            self._batch = self._new_batch()

    def end(self, error: AgeMemError) -> None:
        """Fail all calls and release the model."""
        self._fail_all(error, [*self._live, *self._ready])
        self._live.clear()
        self._ready.clear()
        del self._checkpoint, self._batch, self._encoder
        free_memory()

    def _new_batch(self) -> Batch:
        options = self._options
        return Batch(self._checkpoint.model, temperature=options.temperature, top_p=options.top_p)

    def _room(self, prompt_tokens: int) -> int:
        """How many tokens the answer to a prompt may have."""
        if not prompt_tokens:
            message = "The model's chat template makes nothing of this conversation."
            raise ProviderError(message)
        most, window = self._options.max_tokens, self._window
        if window is None:
            return most
        if prompt_tokens > window - min(most, max(window // _ROOM_SHARE, 1)):
            message = (
                f"The prompt has {prompt_tokens} tokens, and the model's window of {window} must hold the answer as "
                "well. Shorten the context (summarise or filter it), or use a model with a longer window."
            )
            raise ProviderError(message)
        return min(most, window - prompt_tokens)

    def _join(self) -> None:
        """Let calls join that fit together, the oldest first; if that fails, the others go on."""
        joining: list[_Turn] = []
        widest = 0
        while self._ready and self._batch.open and len(self._live) + len(joining) < self._options.max_rows:
            turn = self._ready[0]
            widest = max(widest, len(turn.row.prompt_ids))
            if joining and widest * (len(joining) + 1) > _PADDED_TOKENS:
                break
            self._ready.popleft()
            if not turn.call.abandoned:
                joining.append(turn)
        if not joining:
            return
        try:
            self._batch.join([turn.row for turn in joining])
        except Exception as error:  # noqa: BLE001  as in turn
            self._fail_all(error, joining)
        else:
            self._live += joining

    def _hand_out(self) -> None:
        """Tell each call what its newest token says, and answer those that are done."""
        left: list[_Turn] = []
        for turn in self._live:
            if turn.row.broken:
                turn.call.fail(_not_a_number())
                continue
            token_id = turn.row.action_ids[-1]
            turn.call.tell(turn.stream.feed(token_id))
            ended = turn.stream.stopped or token_id in self._checkpoint.eos_ids
            if ended or len(turn.row.action_ids) >= turn.room:
                turn.call.tell(turn.stream.finish())
                turn.call.answer(_completion(turn, cut_off=not ended))
            else:
                left.append(turn)
        self._keep(left)

    def _keep(self, turns: Sequence[_Turn]) -> None:
        kept = set(map(id, turns))
        self._batch.keep([place for place, turn in enumerate(self._live) if id(turn) in kept])
        self._live = list(turns)

    def _fail_all(self, error: Exception, turns: Sequence[_Turn]) -> None:
        shown = _translated(error, "failed while it generated")
        for turn in turns:
            turn.call.fail(shown)


class _Chances:
    """A source of chance for each row, which depends on the seed, the row's prompt, and nothing else.

    The same prompt asked again goes on to another one, so that the rollouts of a group differ.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._asked: OrderedDict[bytes, int] = OrderedDict()

    def of(self, prompt_ids: tuple[int, ...]) -> np.random.Generator:
        if self._seed is None:
            return np.random.default_rng()
        key = hashlib.blake2b(np.asarray(prompt_ids, np.int64).tobytes(), digest_size=16).digest()
        before = self._asked.pop(key, 0)
        self._asked[key] = before + 1
        while len(self._asked) > _REMEMBERED_PROMPTS:
            self._asked.popitem(last=False)
        return np.random.default_rng([self._seed, before, int.from_bytes(key, "little")])


def _completion(turn: _Turn, *, cut_off: bool) -> Completion:
    row = turn.row
    return Completion(
        text=turn.stream.text,
        cut_off=cut_off,
        prompt_tokens=len(row.prompt_ids),
        completion_tokens=len(row.action_ids),
        prompt_ids=row.prompt_ids,
        action_ids=tuple(row.action_ids),
        logprobs=tuple(row.logprobs),
    )


def _not_a_number() -> ProviderError:
    return ProviderError(
        "The model's probabilities are not numbers. Its weights are damaged, or overflow in their number format: "
        "choose dtype=float32 or bfloat16."
    )


def _translated(error: Exception, what: str) -> AgeMemError:
    if isinstance(error, AgeMemError):
        return error
    # or else the tensors of the failed pass would live as long as somebody keeps the error
    traceback.clear_frames(error.__traceback__)
    if is_out_of_memory(error):
        shown = ProviderError(
            "Memory ran out while the model generated. Lower max_rows (calls at once), window (their length) or "
            "max_tokens, or choose dtype=bfloat16."
        )
    else:
        shown = ProviderError(f"The model {what}: {first_line(error)}.")
    shown.__cause__ = error
    return shown

"""Turns for many trajectories at once, by the model that is being trained.

What a trajectory's next prompt has in common with all it has read and written so far is not read again: its keys and
values are kept between turns. Rows are right-aligned, so that a token of every row is written at one place of memory
that was set aside before, and rows that are done leave.
"""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicCache

from agemem_policies.local.chat_ids import ChatEncoder
from agemem_policies.local.generation import cache_name_of
from agemem_policies.local.text_stream import TextStream
from agemem_policies.policy import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from agemem_policies.local.chat_ids import ChatTokenizer
    from agemem_policies.policy import Prompt


_SHORT_BITS = 5
"""Up to 2^5 - 1 tokens to be read are few, and not worth a pass of their own."""


@dataclass(slots=True)
class Asked:
    """A turn that a trajectory wants."""

    number: int
    """Of the trajectory."""
    prompt: Prompt
    chance: np.random.Generator
    """The trajectory's own, so that what it samples depends on nobody else."""


@dataclass(slots=True)
class Work:
    """What sampling took."""

    seconds: float = 0.0
    read_tokens: int = 0
    """Of prompts; what was kept from earlier turns is not read again."""
    written_tokens: int = 0


@dataclass(slots=True)
class _Kept:
    """What a trajectory has read and written, as the model's layers see it."""

    ids: list[int]
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values, [heads, T, size] each."""


@dataclass(slots=True)
class _Row:
    """A turn being written."""

    asked: Asked
    prompt_ids: list[int]
    stream: TextStream
    common: int
    """How many of the prompt's tokens are kept from earlier turns."""
    action_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    ended: bool = False

    @property
    def fresh(self) -> int:
        """How many of the prompt's tokens are to be read."""
        return len(self.prompt_ids) - self.common


class TurnSampler:
    """Samples turns; used by one thread at a time."""

    def __init__(  # noqa: PLR0913  one per option
        self,
        model: Any,  # noqa: ANN401  transformers' model classes have no common type
        tokenizer: ChatTokenizer,
        eos_ids: frozenset[int],
        *,
        temperature: float = 1.0,
        max_tokens: int = 256,
        keep: bool = True,
    ) -> None:
        """Set it up; nothing is kept yet.

        Args:
            model: a causal language model of transformers; whoever trains it calls :meth:`forget` after each update.
            tokenizer: with a chat template.
            eos_ids: tokens that end a turn.
            temperature: 0 takes the most probable token.
            max_tokens: of a turn.
            keep: keep keys and values between turns. They take memory for every token of every live trajectory.

        Raises:
            ConfigurationError: the model takes no cache.
        """
        self._model = model
        # An adapter's forward takes anything and hands it on.
        self._cache_name = cache_name_of(model.get_base_model() if hasattr(model, "get_base_model") else model)
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._encoder = ChatEncoder(tokenizer, eos_ids)
        self._silent_ids = self._encoder.control_ids | eos_ids
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._keep = keep
        self._kept: dict[int, _Kept] = {}
        self.work = Work()

    def forget(self, number: int | None = None) -> None:
        """Let go what is kept of a trajectory that has ended; or of all, after an update of the model."""
        if number is None:
            self._kept.clear()
        else:
            self._kept.pop(number, None)

    @torch.inference_mode()
    def sample(self, asked: Sequence[Asked]) -> list[Completion]:
        """Sample a turn for each of several trajectories.

        Raises:
            ProviderError: the chat template takes no such conversation.
        """
        began = time.perf_counter()
        rows = [self._row(one) for one in asked]
        fresh = sum(row.fresh for row in rows)
        known = dict(self._kept)
        for group in _longer_ones(rows):
            self._read_ahead(group, known)
        batch = _Batch(self._model, self._cache_name, rows, known, self._max_tokens)
        while batch.live:
            self._draw(batch.logits_B_V, batch.live)
            batch.advance(keep=self._keep)
        self._kept |= batch.kept
        self.work.seconds += time.perf_counter() - began
        self.work.read_tokens += fresh
        self.work.written_tokens += sum(len(row.action_ids) for row in rows)
        return [_completion(row) for row in rows]

    def _read_ahead(self, rows: list[_Row], known: dict[int, _Kept]) -> None:
        """Read all of prompts but their last tokens."""
        ahead = [replace(row, prompt_ids=row.prompt_ids[:-1]) for row in rows]
        known |= _Batch(self._model, self._cache_name, ahead, known, 0).put_by()
        for row in rows:
            row.common = len(row.prompt_ids) - 1

    def _row(self, asked: Asked) -> _Row:
        ids = self._encoder.encode(asked.prompt.messages)
        kept = self._kept.get(asked.number)
        common = 0
        if kept is not None:
            # The last token is always read: what comes after it is wanted.
            most = min(len(kept.ids), len(ids) - 1)
            common = next((at for at in range(most) if kept.ids[at] != ids[at]), most)
        return _Row(asked, ids, TextStream(self._tokenizer, self._silent_ids), common)

    def _draw(self, logits_B_V: Tensor, rows: list[_Row]) -> None:
        """Draw each row's next token, under softmax(logits / temperature) in float32; at 0 the most probable one."""
        if self._temperature > 0:
            logits_B_V = logits_B_V / self._temperature
        logprobs_B_V = logits_B_V.log_softmax(-1)
        if self._temperature > 0:
            reached_B_V = logprobs_B_V.double().exp().cumsum(-1)
            chance_B = torch.tensor([row.asked.chance.random() for row in rows], dtype=torch.float64)
            wanted_B_1 = chance_B.to(reached_B_V.device)[:, None] * reached_B_V[:, -1:]
            chosen_B = torch.searchsorted(reached_B_V, wanted_B_1, right=True)[:, 0].clamp(max=logits_B_V.shape[-1] - 1)
        else:
            chosen_B = logprobs_B_V.argmax(-1)
        logprobs_B = logprobs_B_V.gather(1, chosen_B[:, None])[:, 0]
        for row, token_id, logprob in zip(rows, chosen_B.tolist(), logprobs_B.tolist(), strict=True):
            row.action_ids.append(token_id)
            row.logprobs.append(logprob)
            row.stream.feed(token_id)
            row.ended = row.stream.stopped or token_id in self._eos_ids


def _longer_ones(rows: list[_Row]) -> list[list[_Row]]:
    """Rows that have more to read than others, in groups of like lengths, which are read by themselves.

    Side by side all would be as wide as the longest: while most read a line, some read a context that was rewritten.
    """
    groups: dict[int, list[_Row]] = {}
    for row in rows:
        groups.setdefault(max(_SHORT_BITS, row.fresh.bit_length()), []).append(row)
    return [groups[bits] for bits in sorted(groups)[1:]]


def _completion(row: _Row) -> Completion:
    row.stream.finish()
    return Completion(
        row.stream.text,
        cut_off=not row.ended,
        prompt_tokens=len(row.prompt_ids),
        completion_tokens=len(row.action_ids),
        prompt_ids=tuple(row.prompt_ids),
        action_ids=tuple(row.action_ids),
        logprobs=tuple(row.logprobs),
    )


class _Layer(CacheLayerMixin):
    """Keys and values [B, heads, W, size] in memory set aside at once, filled from the left up to ``end``."""

    def __init__(self, rows: list[_Row], kept: dict[int, _Kept], layer: int, width: int, room: int) -> None:
        super().__init__()
        self.end = width
        self._olds = [
            None if not row.common else tuple(one[:, : row.common] for one in kept[row.asked.number].layers[layer])
            for row in rows
        ]
        self._room = room

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros(batch, heads, self._room, size)
        self.values = value_states.new_zeros(batch, heads, self._room, size)
        for number, old in enumerate(self._olds):
            if old is not None:
                length = old[0].shape[1]
                self.keys[number, :, self.end - length : self.end] = old[0]
                self.values[number, :, self.end - length : self.end] = old[1]
        self._olds = []
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401  the base class's
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None  # noqa: S101, PT018  for the type checker
        end = self.end + key_states.shape[2]
        self.keys[:, :, self.end : end] = key_states
        self.values[:, :, self.end : end] = value_states
        self.end = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.end + query_length, 0

    def get_seq_length(self) -> int:
        return self.end

    def get_max_length(self) -> int:
        return -1


class _Batch:
    """Rows that are written together."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401  as above
        cache_name: str,
        rows: list[_Row],
        kept: dict[int, _Kept],
        max_tokens: int,
    ) -> None:
        self.live = list(rows)
        self.kept: dict[int, _Kept] = {}
        self._model = model
        self._cache_name = cache_name
        self._max_tokens = max_tokens
        device = model.device
        old = max(row.common for row in rows)
        new = max(len(row.prompt_ids) - row.common for row in rows)
        self._width = old + new
        self._cache = DynamicCache()
        room = self._width + max_tokens
        layers = model.config.get_text_config().num_hidden_layers
        self._layers = [_Layer(rows, kept, layer, old, room) for layer in range(layers)]
        self._cache.layers.extend(self._layers)
        self._mask_B_T = torch.zeros(len(rows), room, dtype=torch.long, device=device)
        ids_B_T = torch.zeros(len(rows), new, dtype=torch.long, device=device)
        positions_B_T = torch.zeros(len(rows), new, dtype=torch.long, device=device)
        for number, row in enumerate(rows):
            fresh = row.prompt_ids[row.common :]
            self._mask_B_T[number, old - row.common : old] = 1
            self._mask_B_T[number, self._width - len(fresh) : self._width] = 1
            ids_B_T[number, new - len(fresh) :] = torch.tensor(fresh, device=device)
            places = torch.arange(row.common, len(row.prompt_ids), device=device)
            positions_B_T[number, new - len(fresh) :] = places
        self.logits_B_V = self._forward(ids_B_T, positions_B_T)

    def advance(self, *, keep: bool) -> None:
        """Let the model read the token that each row has just written; rows that are done leave first."""
        staying = [
            place for place, row in enumerate(self.live)
            if not row.ended and len(row.action_ids) < self._max_tokens
        ]  # fmt: skip
        if keep:
            for place in set(range(len(self.live))) - set(staying):
                self._put_by(place)
        if not staying:
            self.live = []
            return
        if len(staying) < len(self.live):
            self._leave(staying)
        ids_B_1 = torch.tensor([[row.action_ids[-1]] for row in self.live], device=self._model.device)
        places = [[len(row.prompt_ids) + len(row.action_ids) - 1] for row in self.live]
        self._mask_B_T[:, self._width] = 1
        self._width += 1
        self.logits_B_V = self._forward(ids_B_1, torch.tensor(places, device=self._model.device))

    def put_by(self) -> dict[int, _Kept]:
        """Keep what all rows have read."""
        for place in range(len(self.live)):
            self._put_by(place)
        return self.kept

    def _put_by(self, place: int) -> None:
        """Keep what a row has read; its last token it has only written."""
        row = self.live[place]
        read = self._mask_B_T[place, : self._width].bool()
        layers = [
            (layer.keys[place, :, : self._width][:, read], layer.values[place, :, : self._width][:, read])
            for layer in self._layers
            if layer.keys is not None and layer.values is not None
        ]
        self.kept[row.asked.number] = _Kept([*row.prompt_ids, *row.action_ids[:-1]], layers)

    def _leave(self, staying: list[int]) -> None:
        self.live = [self.live[place] for place in staying]
        kept = cast("torch.LongTensor", torch.tensor(staying, device=self._model.device))
        for layer in self._layers:
            layer.reorder_cache(kept)
        self._mask_B_T = self._mask_B_T[kept]

    def _forward(self, ids_B_T: Tensor, positions_B_T: Tensor) -> Tensor:
        """Logits after each row's last token (float32, [B, V])."""
        given = self._model(
            input_ids=ids_B_T,
            attention_mask=self._mask_B_T[:, : self._width],
            position_ids=positions_B_T,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._cache},
        )
        return given.logits[:, -1].float()

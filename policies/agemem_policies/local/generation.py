"""Rows that generate together: one forward pass gives each of them its next token.

Written by hand rather than on ``model.generate``, because a row must be answered as soon as it is done, others must
be able to join in between, and the log-probabilities have to be those of the very distribution that was drawn from.
"""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportUntypedFunctionDecorator=false

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

_CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""From transformers 5.24 on, before that, and before that of state space models."""


def cache_name_of(model: Any) -> str:  # noqa: ANN401  any causal model
    """By which name a model's ``forward`` takes its cache.

    Args:
        model: a causal language model of transformers.

    Raises:
        ConfigurationError: it takes none.
    """
    accepted = inspect.signature(model.forward).parameters
    name = next((one for one in _CACHE_NAMES if one in accepted), None)
    if name is None:
        # some take any name and ignore it; without its memory a model would see its last token alone
        message = f"{type(model).__name__} takes no cache of transformers, so it cannot generate token by token here."
        raise ConfigurationError(message)
    return name


@dataclass(slots=True)
class Row:
    """One prompt and what was sampled after it."""

    prompt_ids: tuple[int, ...]
    chance: np.random.Generator
    """The row's own, so that what it samples does not depend on who else is in the batch."""
    action_ids: list[int] = field(default_factory=list["int"])
    logprobs: list[float] = field(default_factory=list["float"])
    broken: bool = False
    """Whether the model gave no distribution to draw from."""


@dataclass(slots=True)
class _State:
    """What the model keeps of B rows of T tokens, left-padded."""

    cache: DynamicCache
    mask_BT: torch.Tensor
    """1 for a token, 0 for padding (int64)."""
    logits_BV: torch.Tensor
    """Of each row's next token (float32)."""


class Batch:
    """A batch that rows join and leave between two tokens; used by one thread."""

    def __init__(self, model: Any, *, temperature: float, top_p: float) -> None:  # noqa: ANN401  any causal model
        """No rows yet.

        Args:
            model: a causal language model of transformers, in evaluation mode.
            temperature: 0 takes the most probable token.
            top_p: draws among the most probable tokens that have this much of the probability together.

        Raises:
            ConfigurationError: the model takes no cache.
        """
        self._model = model
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        self._cache_name = cache_name_of(model)
        self._temperature = temperature
        self._top_p = top_p
        self._state: _State | None = None
        self.rows: list[Row] = []

    @property
    def open(self) -> bool:
        """Whether rows can join now.

        Only caches that hold one key and value per token can be padded afterwards; a sliding window or a recurrent
        state cannot, so with such a model new rows wait until the batch is empty.
        """
        layers = [] if self._state is None else self._state.cache.layers
        return all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers)

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of new rows; nothing changes if that fails.

        Args:
            rows: not empty; they come after those that are there.
        """
        width = max(len(row.prompt_ids) for row in rows)
        blanks = [width - len(row.prompt_ids) for row in rows]
        device = self._model.device
        # any token will do as padding: it is masked
        padded = [[0] * blank + list(row.prompt_ids) for blank, row in zip(blanks, rows, strict=True)]
        ids_BT = torch.tensor(padded, device=device)
        mask_BT = (torch.arange(width, device=device) >= torch.tensor(blanks, device=device)[:, None]).long()
        cache = DynamicCache(config=self._model.config)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        new = _State(cache, mask_BT, self._forward(ids_BT, mask_BT, positions_BT, cache))
        self._state = new if self._state is None else _joined(self._state, new)
        self.rows += rows

    @torch.inference_mode()
    def advance(self) -> None:
        """Let the model read the token that each row sampled last."""
        state = self._state
        if state is None:
            return
        ids_B1 = torch.tensor([[row.action_ids[-1]] for row in self.rows], device=self._model.device)
        state.mask_BT = torch.cat([state.mask_BT, torch.ones_like(ids_B1)], 1)
        positions_B1 = state.mask_BT.sum(1, keepdim=True) - 1
        # where no layer looks back at single tokens, the mask would be taken for one of the new token
        looks_back = any(isinstance(layer, CacheLayerMixin) for layer in state.cache.layers)
        mask_BT = state.mask_BT if looks_back else None
        state.logits_BV = self._forward(ids_B1, mask_BT, positions_B1, state.cache)

    @torch.inference_mode()
    def sample(self) -> None:
        """Draw each row's next token, with its log-probability.

        That is the token's under softmax(logits / temperature) in float32, before ``top_p`` cuts anything off: for
        training leave ``top_p`` at 1, where this is the distribution drawn from. At temperature 0 it is the
        token's under softmax(logits).
        """
        if self._state is None:
            return
        logits_BV = self._state.logits_BV
        if self._temperature > 0:
            logits_BV = logits_BV / self._temperature
        logprobs_BV = logits_BV.log_softmax(-1)
        chosen_B = self._drawn(logprobs_BV) if self._temperature > 0 else logprobs_BV.argmax(-1)
        logprobs_B = logprobs_BV.gather(1, chosen_B[:, None])[:, 0]
        for row, token_id, logprob in zip(self.rows, chosen_B.tolist(), logprobs_B.tolist(), strict=True):
            row.broken = not math.isfinite(logprob)
            if not row.broken:
                row.action_ids.append(token_id)
                row.logprobs.append(logprob)

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Let all rows go but those at the given places."""
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        state = self._state
        if state is None or not self.rows:
            self._state = None
            return
        kept = torch.tensor(places, device=state.mask_BT.device)
        state.cache.reorder_cache(cast("torch.LongTensor", kept))
        state.mask_BT, state.logits_BV = state.mask_BT[kept], state.logits_BV[kept]
        if self.open:
            _trim(state)

    def _forward(
        self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None, positions_BT: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits after each row's last token (float32, [B, V])."""
        options: dict[str, Any] = {"position_ids": positions_BT, "logits_to_keep": 1}
        accepted = {name: value for name, value in options.items() if name in self._accepted}
        accepted[self._cache_name] = cache
        given = self._model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=True, **accepted)
        return given.logits[:, -1].float()

    def _drawn(self, logprobs_BV: torch.Tensor) -> torch.Tensor:
        """One token per row, each from the row's own source of chance [B]."""
        # sums over a whole vocabulary want float64, which Apple's GPUs do not have
        wide = torch.float32 if logprobs_BV.device.type == "mps" else torch.float64
        probs_BV = logprobs_BV.to(wide).exp()
        order_BV = None
        if self._top_p < 1:
            probs_BV, order_BV = probs_BV.sort(-1, descending=True)
            before_BV = probs_BV.cumsum(-1) - probs_BV
            probs_BV = probs_BV.where(before_BV < self._top_p, 0)
        reached_BV = probs_BV.cumsum(-1)
        chance_B = torch.tensor([row.chance.random() for row in self.rows], dtype=wide, device=probs_BV.device)
        at_B1 = torch.searchsorted(reached_BV, chance_B[:, None] * reached_BV[:, -1:], right=True)
        at_B1 = at_B1.clamp(max=reached_BV.shape[-1] - 1)
        return (at_B1 if order_BV is None else order_BV.gather(1, at_B1))[:, 0]


def _joined(old: _State, new: _State) -> _State:
    """Both batches as one, the shorter one padded further; neither is changed."""
    width = max(old.mask_BT.shape[1], new.mask_BT.shape[1])
    cache = DynamicCache()
    for layer, (one, other) in enumerate(zip(_layers(old), _layers(new), strict=True)):
        keys = torch.cat([_widened(one.keys, width), _widened(other.keys, width)])
        values = torch.cat([_widened(one.values, width), _widened(other.values, width)])
        cache.update(keys, values, layer)
    masks = [torch.nn.functional.pad(state.mask_BT, (width - state.mask_BT.shape[1], 0)) for state in (old, new)]
    return _State(cache, torch.cat(masks), torch.cat([old.logits_BV, new.logits_BV]))


def _layers(state: _State) -> list[Any]:
    """Layers with ``keys`` and ``values`` [B, heads, T, size], as those of an open batch are."""
    return cast("list[Any]", state.cache.layers)


def _widened(cached: torch.Tensor, width: int) -> torch.Tensor:
    """Keys or values [B, heads, T, size] with empty tokens on the left, T = width."""
    return torch.nn.functional.pad(cached, (0, 0, width - cached.shape[2], 0))


def _trim(state: _State) -> None:
    """Cut off what is padding in every row, once the longest row has left."""
    blank = int(state.mask_BT.argmax(1).min())
    if not blank:
        return
    state.mask_BT = state.mask_BT[:, blank:]
    for layer in _layers(state):
        layer.keys, layer.values = layer.keys[:, :, blank:], layer.values[:, :, blank:]

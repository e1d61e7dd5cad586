"""Trajectories as rows of tokens, and rows as micro-batches. No torch.

Every step has a prompt of its own; but as long as the context only grows, a prompt begins with the one before it and
what was written then. Such steps share one row: the same log-probabilities from far fewer tokens, as a causal model
sees the same tokens before each. Where the context was rewritten, a new row begins.

A token's weight is ``1 / (tokens of its step · steps of the batch)``: each step weighs the same whatever its length and
its trajectory's (|E| of the objective counts steps), and the weights of a batch sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agemem_mcp.errors import InvalidOperation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.steps import Step

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]
Bools: TypeAlias = NDArray[np.bool_]

NO_STEP = -1
"""In place of a step's position: a token of a prompt, or padding."""


@dataclass(slots=True)
class Row:
    """Consecutive steps of one trajectory as one sequence of T tokens."""

    ids_T: list[int] = field(default_factory=list[int])
    steps_T: list[int] = field(default_factory=list[int])
    """Which step wrote a token, by its position in the trajectory; :data:`NO_STEP` for what it was shown."""
    logprobs_T: list[float] = field(default_factory=list[float])
    """Of each written token when it was sampled; NaN where that is not known; 0 elsewhere."""
    weights_T: list[float] = field(default_factory=list[float])
    """0 for what it was shown."""
    advantage: float = 0.0
    source: str = ""
    """Which trajectory it is of, for error messages."""

    def __len__(self) -> int:
        return len(self.ids_T)

    def read(self, ids: Sequence[int]) -> None:
        """Append what the policy was shown."""
        self.ids_T += ids
        self.steps_T += [NO_STEP] * len(ids)
        self.logprobs_T += [0.0] * len(ids)
        self.weights_T += [0.0] * len(ids)

    def write(self, step: Step, position: int, step_count: int) -> None:
        """Append what the policy wrote in a step."""
        ids = step.completion.action_ids
        self.ids_T += ids
        self.steps_T += [position] * len(ids)
        self.logprobs_T += step.completion.logprobs or [float("nan")] * len(ids)
        self.weights_T += [1 / (len(ids) * step_count)] * len(ids)


def step_count(steps: Sequence[Step]) -> int:
    """How many of the steps can be learned from: those in which something was written."""
    return sum(bool(step.completion.action_ids) for step in steps)


def merged_rows(
    steps: Sequence[Step], *, steps_in_batch: int, advantage: float = 0.0, source: str = "", merge: bool = True
) -> list[Row]:
    """The steps of one trajectory as rows.

    Args:
        steps: in order, with tokens.
        steps_in_batch: :func:`step_count` over all trajectories of the batch: |E|.
        advantage: of the trajectory.
        source: names the trajectory in error messages.
        merge: False gives each step a row of its own, to check that it makes no difference.

    Raises:
        InvalidOperation: a step has no prompt tokens, or not one log-probability for each token.
    """
    rows: list[Row] = []
    for position, step in enumerate(steps):
        completion = step.completion
        if not completion.action_ids:
            continue
        if not completion.prompt_ids or len(completion.logprobs) not in (0, len(completion.action_ids)):
            msg = (
                f"Step {position} of {source or 'a trajectory'} has {len(completion.prompt_ids)} prompt tokens, "
                f"{len(completion.action_ids)} written tokens and {len(completion.logprobs)} log-probabilities. "
                "Roll out with a policy that gives tokens."
            )
            raise InvalidOperation(msg)
        prompt = list(completion.prompt_ids)
        if not (merge and rows and prompt[: len(rows[-1])] == rows[-1].ids_T):
            rows.append(Row(advantage=advantage, source=source))
        row = rows[-1]
        row.read(prompt[len(row) :])
        row.write(step, position, steps_in_batch)
    return rows


def packed(rows: Sequence[Row], *, max_tokens: int) -> list[list[Row]]:
    """Put rows into micro-batches, rows of like length together, so that little is padding.

    Args:
        rows: of a batch.
        max_tokens: of a micro-batch, padding included; a row that is longer by itself goes alone.
    """
    batches: list[list[Row]] = []
    for row in sorted(rows, key=len, reverse=True):
        # The first of a micro-batch is its longest.
        if batches and len(batches[-1][0]) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@dataclass(frozen=True, slots=True)
class RowBatch:
    """B rows, padded on the right to T tokens."""

    ids_B_T: Ints
    attention_B_T: Bools
    """False for padding."""
    is_action_B_T: Bools
    """What the policy wrote."""
    steps_B_T: Ints
    logprobs_B_T: Floats
    weights_B_T: Floats
    advantages_B_T: Floats
    sources: tuple[str, ...]


def padded(rows: Sequence[Row], *, pad_id: int = 0, length: int | None = None) -> RowBatch:
    """Rows as arrays.

    Args:
        rows: of a micro-batch.
        pad_id: any token of the vocabulary.
        length: T, at least that of the longest row; None for just that.
    """
    shape = (len(rows), max(length or 0, *(len(row) for row in rows), 1))
    batch = RowBatch(
        ids_B_T=np.full(shape, pad_id, dtype=np.int64),
        attention_B_T=np.zeros(shape, dtype=np.bool_),
        is_action_B_T=np.zeros(shape, dtype=np.bool_),
        steps_B_T=np.full(shape, NO_STEP, dtype=np.int64),
        logprobs_B_T=np.zeros(shape, dtype=np.float32),
        weights_B_T=np.zeros(shape, dtype=np.float32),
        advantages_B_T=np.zeros(shape, dtype=np.float32),
        sources=tuple(row.source for row in rows),
    )
    for number, row in enumerate(rows):
        filled = (number, slice(len(row)))
        batch.ids_B_T[filled] = row.ids_T
        batch.attention_B_T[filled] = True
        batch.steps_B_T[filled] = row.steps_T
        batch.is_action_B_T[filled] = np.asarray(row.steps_T) != NO_STEP
        batch.logprobs_B_T[filled] = row.logprobs_T
        batch.weights_B_T[filled] = row.weights_T
        batch.advantages_B_T[filled] = row.advantage
    return batch

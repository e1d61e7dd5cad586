"""Summaries of a context by the policy's own model (AgeMem, A.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agemem_mcp.domain.context import in_span
from agemem_mcp.errors import ProviderError
from agemem_policies.policy import ChatMessage, Prompt
from agemem_policies.prompts import load_prompt
from agemem_policies.protocol import ProtocolViolation, parse

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_policies.policy import Completion, Policy
    from agemem_policies.session import SessionContext
    from agemem_policies.steps import Trajectory

_SHARE = 0.3
_FEWEST_TOKENS = 64


class OwnSummaries:
    """Asks a policy's model to condense part of a context."""

    def __init__(
        self, policy: Policy, context: SessionContext, trajectory: Trajectory, *, prompts: Path | None
    ) -> None:
        """Set it up.

        Args:
            policy: whose model is asked.
            context: what is condensed.
            trajectory: what the model reads and writes is counted there.
            prompts: folder of prompts that replace those shipped.
        """
        self._policy = policy
        self._context = context
        self._trajectory = trajectory
        self._prompts = prompts

    async def of_span(self, span: str) -> str | None:
        """A summary of a span; None if there is nothing to condense, or the model gives none."""
        span = span.strip().lower()
        if span not in ("all", "full") and not (span.isascii() and span.isdigit() and int(span) > 0):
            return None
        messages = in_span(self._context.messages, "all" if span == "full" else span)
        if not messages:
            return None
        most = max(_FEWEST_TOKENS, int(_SHARE * sum(message.tokens for message in messages)))
        instruction = load_prompt("summarise", self._prompts).replace("{max_tokens}", str(most))
        conversation = "\n\n".join(f"[{message.role.value}]\n{message.content}" for message in messages)
        prompt = Prompt((ChatMessage("system", instruction), ChatMessage("user", conversation)))
        try:
            completion = await self._policy.act(prompt)
        except ProviderError:
            return None  # the server has ways of its own
        self._trajectory.counted(completion)
        return _text_of(completion)


def _text_of(completion: Completion) -> str | None:
    """What a model gave as the summary, also one that cannot but write turns."""
    text = completion.text
    if "<answer>" in text or "</think>" in text:
        try:
            text = parse(text, cut_off=completion.cut_off).answer or ""
        except ProtocolViolation:
            text = text.rpartition("</think>")[2]
    text = text.strip()
    return None if completion.cut_off or not text or "<tool_call>" in text else text

"""The policy that answers, made from the settings, and the names that it is asked by."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from agemem_policies.baselines import AGEMEM, KITS, Kit
from agemem_policies.endpoint.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from agemem_mcp.settings import PolicySettings
    from agemem_policies.policy import Policy

_MOST_SCRIPTS = 10_000
NO_POLICY = (
    "No policy answers here. Set AGEMEM_POLICY__NAME to openai:MODEL@URL, hf:PATH or scripted:NAME, and start the "
    "server again."
)


def served_policy(settings: PolicySettings, name: str) -> ServedPolicy:
    """What the settings name; a model on this machine is only loaded when it is first asked.

    Args:
        settings: with its key, and how it calls tools.
        name: the policy's.

    Raises:
        ConfigurationError: there is no such policy.
    """
    from agemem_policies.choosing import make_policy, parse_choice  # noqa: PLC0415  not without a policy

    key = None if settings.api_key is None else settings.api_key.get_secret_value()

    def make() -> Policy:
        return make_policy(name, api_key=key, native=settings.native)

    choice = parse_choice(name)
    if choice.kind == "openai":
        return ServedPolicy(make, choice.name)
    if choice.kind == "hf":
        # Where it lies is nobody's business.
        return ServedPolicy(make, choice.name.rstrip("/").rpartition("/")[2], late=True)
    return ServedPolicy(make, name.strip(), scripted=True)


class ServedPolicy:
    """Gives each session its policy: the same one, but for scripts, which each session begins anew."""

    def __init__(self, make: Callable[[], Policy], alias: str, *, scripted: bool = False, late: bool = False) -> None:
        """Set it up.

        Args:
            make: makes the policy.
            alias: its own name among the models.
            scripted: it has a state, so that each session has one of its own.
            late: making it takes long, so that it is only made when it is first asked, in a thread.

        Raises:
            ConfigurationError: it cannot be made.
        """
        self.alias = alias
        self._make = make
        self._scripted = scripted
        self._policies: OrderedDict[str, Policy] = OrderedDict()
        """Of sessions, where each has its own."""
        self._one: Policy | None = None if late else make()
        self._loading = asyncio.Lock()

    @property
    def models(self) -> tuple[str, ...]:
        """All names that it is asked by."""
        return tuple(dict.fromkeys((*KITS, self.alias)))

    def kit(self, model: str | None) -> Kit:
        """Which kit a model's name stands for.

        Raises:
            Failure: none.
        """
        if model is None or model == self.alias:
            return KITS.get(model or "", AGEMEM)
        if model not in KITS:
            msg = f"There is no model {model[:80]!r}. There are {', '.join(self.models)}."
            raise Failure(404, msg, code="model_not_found", param="model")
        return KITS[model]

    async def of(self, session_id: str | None) -> Policy:
        """The policy of a session, or for a new one.

        Raises:
            AgeMemError: it cannot be loaded.
        """
        if self._scripted:
            return (self._policies.get(session_id) if session_id is not None else None) or self._make()
        if self._one is None:
            async with self._loading:
                self._one = self._one or await asyncio.to_thread(self._make)
        return self._one

    def keep(self, session_id: str, policy: Policy) -> None:
        """A session goes on with this policy."""
        if self._scripted:
            self._policies[session_id] = policy
            self._policies.move_to_end(session_id)
            if len(self._policies) > _MOST_SCRIPTS:
                self._policies.popitem(last=False)

    async def close(self) -> None:
        """Release what it holds. Scripts hold nothing."""
        if self._one is not None:
            await self._one.close()

"""Drills: short exchanges that need one skill each, in just the form of an episode, made without a server.

A policy learns to copy from many short examples, not from a few long ones; of those a machine makes thousands in a
second. Their names are those of the ``train`` split and others that belong to none (`practice_tails`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from agemem_mcp.server.render import ADVICE_ON_SIMILAR
from agemem_policies.protocol import Call, Turn
from agemem_training.mini.demonstrator import DONE, EXPERT, OK, SUMMARY
from agemem_training.mini.scene import Scene
from agemem_training.tasks.synthetic.language import RELATIONS, TWO_HOPS, UNKNOWN

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from agemem_training.mini.scene import Exchange, Known
    from agemem_training.tasks.source import Split

Skill: TypeAlias = Literal["add", "update", "delete", "answer", "unknown", "two hops", "small talk", "clear"]

_WEIGHTS: dict[Skill, float] = {
    "add": 3, "update": 3, "delete": 2, "answer": 4, "unknown": 3, "two hops": 4, "small talk": 1, "clear": 1.5,
}  # fmt: skip
_IN_A_CHAT = 0.3
"""Share of the questions that come after other messages."""
_TOLD_IN_A_CHAT = 0.6
"""Share of the facts and of the changes that do. What was done before must not tell what is to be done: a policy that
mostly saw additions after additions makes one of a change."""
_CHATTED = (0.35, 0.25, 0.25, 0.15)
"""Shares of facts, small talk, changes and what is taken back among those messages."""
_TOLD = (0.5, 0.3, 0.2)
"""Shares of facts, changes and what is taken back where all are told."""
_LONG = 0.09
"""Share of the drills that come after long chats, as chats outside of training are."""
_LONG_TOKENS = (400, 1000)
"""How long those are, about."""
_CHAT_WINDOW_TOKENS = 8192
"""What the context of a chat holds: the server's default. Nothing in it is cleared."""
_SPARE_IDS = 10
"""So many are left for what comes after a long chat."""
_SUMMARISED = 0.5
"""Share of the contexts on one topic that are cleared by a summary; without a topic all are."""
_VERSIONS = (2, 2, 2, 3, 4, 5)
"""That a memory which is updated gets, by chance."""
_CLOSE = 2
"""So many memories, at most, a drill's server names as close to a new one."""
_FULL_OF_FACTS = 0.3
"""Share of the full contexts that hold facts, not small talk."""


def drill(
    rng: random.Random,
    *,
    system: str,
    split: Split = "train",
    skill: Skill | None = None,
    budget_tokens: int = 512,
) -> list[Exchange]:
    """Make a drill.

    Args:
        rng: source of chance.
        system: the system prompt.
        split: whose names and wording it uses.
        skill: what it needs; None for any.
        budget_tokens: T_max of the context.
    """
    scene = Scene(rng, split, system, budget_tokens)
    chosen: Skill = skill or rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    match chosen:
        case "small talk":
            _small_talk(scene)
        case "clear":
            _clear(scene)
        case "add" | "update" | "delete":
            if not _chat(scene, _TOLD_IN_A_CHAT):
                _IN_CHAT[chosen](scene)
        case "answer" | "unknown" | "two hops":
            if not _chat(scene, _IN_A_CHAT):
                _IN_CHAT[chosen](scene)
    return scene.exchanges


def _add(scene: Scene) -> bool:
    """Tells whether the context was cleared after it."""
    fact = scene.news()
    scene.told(fact.text)
    if count := scene.rng.randint(0, 2):
        scene.hits(None, count, like=fact)
    scene.write(Turn("new fact", (Call("Add_memory", {"content": fact.text, "memory_type": "fact"}),)))
    scene.observed(_stored(scene, fact))
    scene.told_there.append(fact)
    return _done(scene)


def _done(scene: Scene) -> bool:
    """What is told was dealt with. Tells whether the context was cleared after it."""
    full = scene.used >= EXPERT.too_full
    scene.write(SUMMARY if full else DONE)
    return full


def _stored(scene: Scene, fact: Known) -> str:
    """What the server answers: it names memories that are close to the new one."""
    close = [one for one in scene.stored if one.relation is fact.relation][:_CLOSE]
    head = f"Stored as {scene.id_of(fact)}."
    if not close:
        return head
    lines = [f"- {scene.id_of(one)} (0.{scene.rng.randint(60, 95)}) {one.text}" for one in close]
    return "\n".join([head, ADVICE_ON_SIMILAR, *lines])


def _update(scene: Scene) -> bool:
    """Tells whether the context was cleared after it."""
    old = scene.known()
    new = scene.fact(old.relation, old.subject)
    scene.told(new.text, change=True)
    found = scene.hits(old, scene.rng.randint(1, 2))
    arguments = {"memory_id": found, "content": new.text}
    scene.write(Turn(f"{old.thought} {found}", (Call("Update_memory", arguments),)))
    scene.change(old, new)
    scene.observed(f"Updated {found} (version {scene.rng.choice(_VERSIONS)}). Before: {old.text}")
    return _done(scene)


def _delete(scene: Scene) -> bool:
    """Tells whether the context was cleared after it."""
    fact = scene.known()
    scene.told(fact.relation.denied.format(s=fact.subject, v=fact.value))
    found = scene.hits(fact, scene.rng.randint(1, 2))
    arguments = {"memory_id": found, "confirmation": True}
    scene.write(Turn(f"{fact.thought} {found}", (Call("Delete_memory", arguments),)))
    scene.forget(fact)
    scene.observed(f"Deleted {found}.")
    return _done(scene)


def _told(scene: Scene) -> bool:
    return scene.rng.choices((_add, _update, _delete), _TOLD)[0](scene)


def _small_talk(scene: Scene) -> None:
    scene.talked()
    scene.hits_of_environment(None)
    scene.write(OK)


def _clear(scene: Scene) -> None:
    """Talk, or facts, until the context is so full that it is cleared, unless they end before."""
    if scene.rng.random() < _FULL_OF_FACTS:
        any(_told(scene) for _ in range(scene.rng.randint(2, 9)))
        return
    as_in_chat = scene.rng.random() < _IN_A_CHAT
    for _ in range(scene.rng.randint(2, 14)):
        criteria = scene.talked()
        if as_in_chat:
            scene.hits_of_environment(None)
        if scene.used >= EXPERT.full:
            by_summary = criteria is None or scene.rng.random() < _SUMMARISED
            scene.write(SUMMARY if by_summary else Turn("too much", (Call("Filter_context", {"criteria": criteria}),)))
            return
        scene.write(OK)


def _chat(scene: Scene, often: float) -> bool:
    """What may stand before it: in a chat, and in stage 1. Tells whether the context was cleared."""
    chance = scene.rng.random()
    if chance < _LONG:
        _long_chat(scene)
        return False
    if chance >= often:
        return False
    return any(_chatted(scene) for _ in range(scene.rng.randint(1, 4)))


def _long_chat(scene: Scene) -> None:
    """A chat that is longer than a window of the episodes; only what is done after it is to be learnt.

    What is done in it is learnt from others: in episodes a context as full as this one is cleared.
    """
    scene.budget_tokens = _CHAT_WINDOW_TOKENS
    wanted = scene.rng.randint(*_LONG_TOKENS) / scene.budget_tokens
    scene.learnt = False
    while scene.used < wanted and len(scene.ids) > _SPARE_IDS:
        _chatted(scene)
    scene.learnt = True


def _chatted(scene: Scene) -> bool | None:
    return scene.rng.choices((_add, _small_talk, _update, _delete), _CHATTED)[0](scene)


def _look_up(scene: Scene, fact: Known, thought: str = "look up", *, found: bool = True) -> None:
    scene.write(Turn(thought, (Call("Retrieve_memory", {"query": fact.relation.lookup.format(s=fact.subject)}),)))
    scene.hits(fact if found else None, 3, like=fact)


def _answer(scene: Scene) -> None:
    fact = scene.fact()
    scene.asked(fact.relation.questions, fact.subject)
    scene.hits_of_environment(fact)
    _look_up(scene, fact)
    scene.write(Turn(fact.thought, answer=fact.value))


def _unknown(scene: Scene) -> None:
    fact = scene.fact()
    scene.asked(fact.relation.questions, fact.subject)
    scene.hits_of_environment(None)
    _look_up(scene, fact, found=False)
    scene.write(Turn("not there", answer=UNKNOWN))


def _two_hops(scene: Scene) -> None:
    hops = scene.rng.choice(TWO_HOPS)
    first = scene.fact(RELATIONS[hops.first])
    second = scene.fact(RELATIONS[hops.second], first.value)
    scene.id_of(second)
    scene.asked(hops.questions, first.subject)
    scene.hits_of_environment(first)
    _look_up(scene, first)
    _look_up(scene, second, first.thought)
    scene.write(Turn(second.thought, answer=second.value))


_IN_CHAT: dict[Skill, Callable[[Scene], bool | None]] = {
    "add": _add, "update": _update, "delete": _delete, "answer": _answer, "unknown": _unknown, "two hops": _two_hops,
}  # fmt: skip
"""What may come after other messages."""

"""The README.md of a checkpoint's folder: what the model is, how to use it, what it was measured to do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agemem_training.config import SHIPPED
from agemem_training.reporting.markdown import before_after
from agemem_training.reporting.writing import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_training.reporting.results import Results, Run

_OWN = {None, SHIPPED}
"""What those policies were trained from whose every word is from generated stories."""


def write_model_card(results: Results, folder: Path) -> None:
    """Write README.md into the checkpoint's folder.

    Raises:
        InvalidOperation: before and after were measured on different tasks.
        OSError: it cannot be written; the old one, if any, is whole.
    """
    write_atomically(folder / "README.md", _card(results))


def _card(results: Results) -> str:
    run = results.run
    sections = [
        _front_matter(run),
        _introduction(run),
        _use(run),
        before_after(results),
        _limits(run),
        _made(run),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(run: Run) -> str:
    # JSON strings are YAML strings, whatever stands in a model's name. The shipped one has no name at the hub; what
    # became of another model has that one's licence.
    own = "license: apache-2.0\nlanguage: en\n"
    base = own if run.base_model in _OWN else f"base_model: {json.dumps(run.base_model)}\n"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{base}tags:
- agemem
- agent-memory
- mcp
- grpo
---"""


def _introduction(run: Run) -> str:
    origins = {None: "scratch", SHIPPED: "the warm start that agemem-mcp ships"}
    origin = origins.get(run.base_model, run.base_model)
    learnt = "with step-wise GRPO" if run.config.get("grpo", {}).get("iterations", 1) else "on demonstrations alone"
    return f"""# {run.name}: a policy that manages its memory

A causal language model of {run.parameters:,} parameters, trained from {origin} {learnt} after AgeMem
([arXiv 2601.01885](https://arxiv.org/abs/2601.01885)). It decides when to add, update, delete and retrieve long-term
memories and when to summarise or filter its context, by calling the six tools of an agemem-mcp server. It was trained
against that very server."""


def _use(run: Run) -> str:
    counted = run.config.get("environment", {}).get("ids") == "sequential"
    ids, memory = ("AGEMEM_IDS=sequential ", " --data-dir DIR/memory") if counted else ("", "")
    serve = f"{ids}AGEMEM_POLICY__NAME=hf:DIR agemem-mcp serve --transport http{memory}"
    commands = {
        f"{ids}agemem-mcp chat --policy hf:DIR{memory}": "DIR is the folder of this file",
        serve: "/v1/chat/completions answers with it",
        "agemem-mcp train --evaluate DIR --seed 1 --episodes 200": "measure it on fresh held-out tasks",
    }
    width = max(map(len, commands))
    shown = "\n".join(f"{command:{width}}  # {comment}" for command, comment in commands.items())
    return f"""## How to use it

```sh
{shown}
```

A turn is `<think>…</think>` and then either `<tool_call>[…]</tool_call>` or `<answer>…</answer>`. Without a memory
server to carry out its calls the model is of no use.{_COUNTED if counted else ""}"""


_COUNTED = """ The ids of memories must count from one (mem_1, mem_2, …), as
`AGEMEM_IDS=sequential` has the server give them in a folder of its own: it was trained with no others."""


def _limits(run: Run) -> str:
    stories = """
- It was trained on generated stories in plain English alone and knows no other words or topics: it shows what the
  method does, and is no assistant.
- It can name the memories mem_1 to mem_99 and no more.
"""
    return f"""## Limits

- It was measured on held-out tasks of the kind it was trained on, and nothing is known beyond them: other tasks,
  languages, longer contexts and other memory servers were not tried.
- It stores what it is told, right or wrong, also when a message asks it to store or to forget something.
- Its answers can be wrong when its memory is right, and the other way round.
{stories.strip(chr(10)) if run.base_model in _OWN else ""}""".rstrip()


def _made(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    config = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
    return f"""## How it was made

```sh
{run.command}
```

Seed {run.seed}; {versions}. The configuration, defaults included:

```json
{config}
```"""

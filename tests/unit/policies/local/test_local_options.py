"""What a local policy is before its first turn: cheap, and checked. None of this needs torch."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.errors import ConfigurationError
from agemem_policies.local import LocalPolicy

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_policy_that_was_never_asked_closes_without_loading(tmp_path: Path) -> None:
    policy = LocalPolicy(tmp_path / "absent")
    assert (policy.name, policy.native) == ("absent", False)
    await policy.close()
    await policy.close()


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"dtype": "int8"},
        {"seed": -1},
        {"window": 1},
        {"max_rows": 0},
    ],
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        LocalPolicy("anywhere", **options)


def test_neither_torch_nor_transformers_is_loaded_before_the_first_turn() -> None:
    script = (
        "import sys; from agemem_policies.local import LocalPolicy; LocalPolicy('x'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"

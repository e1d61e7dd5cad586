"""What a process loads before it answers its first message."""

from __future__ import annotations

import subprocess
import sys


def test_an_owner_loads_neither_stores_nor_models_before_its_handshake() -> None:
    script = (
        "import sys\n"
        "import agemem_mcp.app, agemem_mcp.daemon, agemem_mcp.owner.owner, agemem_mcp.adapters.data_folder\n"
        "late = {'numpy', 'sqlalchemy', 'qdrant_edge', 'fastembed', 'onnxruntime', 'fastapi'}\n"
        "print(sorted(late & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_list_of_commands_does_not_load_the_agents_loop() -> None:
    script = (
        "import sys\n"
        "import agemem_policies.chat.command\n"
        "late = {'agemem_policies.agent', 'mcp', 'numpy', 'torch', 'httpx'}\n"
        "print(sorted(late & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"

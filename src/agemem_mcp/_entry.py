"""Where the console script starts: standard library only, so that a light path stays light."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        from agemem_mcp._version import __version__  # noqa: PLC0415  the light path

        print(f"agemem-mcp {__version__}")  # noqa: T201  the answer
        return
    from agemem_mcp.cli import run  # noqa: PLC0415  the light path must not load it

    run()

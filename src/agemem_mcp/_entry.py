"""Where the console script starts: standard library only, so that a light path stays light."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line."""
    # Imports make some hundred thousand objects and no garbage: looking for it costs a sixth of the start-up time.
    # `cli.output.run_async` switches it on again.
    gc.disable()
    if sys.argv[1:] == ["--version"]:
        from agemem_mcp._version import __version__  # noqa: PLC0415  the light path

        print(f"agemem-mcp {__version__}")  # noqa: T201  the answer
        return
    from agemem_mcp.cli import run  # noqa: PLC0415  the light path must not load it

    run()

"""Where the console script starts: standard library only, so that a light path stays light."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the command line, or go around it where there is no need for it."""
    # Imports make some hundred thousand objects and no garbage: looking for it costs a sixth of the start-up time.
    # `process.run_async` switches it on again.
    gc.disable()
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from agemem_mcp._version import __version__  # noqa: PLC0415  the light path

        print(f"agemem-mcp {__version__}")  # noqa: T201  the answer
        return
    if arguments[:1] == ["serve"]:
        from agemem_mcp.link import pipe  # noqa: PLC0415  only this path

        options = pipe.options_of(arguments[1:])
        status = None if options is None else pipe.serve(options)
        if status is not None:
            sys.exit(status)
        if options is not None:
            sys.argv.append("--no-daemon")
    from agemem_mcp.cli import run  # noqa: PLC0415  the light path must not load it

    run()

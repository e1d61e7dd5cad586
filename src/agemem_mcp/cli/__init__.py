"""The command line. Each file holds one group of commands; other packages add theirs by entry point."""

from agemem_mcp.cli.main import run

__all__ = ["run"]

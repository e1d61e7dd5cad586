"""Long-term and short-term memory for any MCP client, managed by six tools."""

from agemem_mcp._version import __version__

__all__ = ["__version__"]

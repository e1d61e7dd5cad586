"""Policies that drive the memory tools. The six operations they choose from are `agemem_mcp.domain.operations`."""

from agemem_mcp.domain.operations import MemoryOperation

__all__ = ["MemoryOperation"]

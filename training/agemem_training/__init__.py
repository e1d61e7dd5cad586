"""Training of policies against the memory server. Its action space is `agemem_policies.MemoryOperation`."""

from agemem_policies import MemoryOperation

__all__ = ["MemoryOperation"]

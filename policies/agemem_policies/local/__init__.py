"""A policy on a model of one's own, run by torch in this process. Importing this imports no torch."""

from agemem_policies.local.policy import LocalPolicy

__all__ = ["LocalPolicy"]

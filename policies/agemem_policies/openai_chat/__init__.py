"""A policy behind any OpenAI-compatible endpoint."""

from agemem_policies.openai_chat.connection import Endpoint, Patience
from agemem_policies.openai_chat.policy import OpenAIChatPolicy, Sampling

__all__ = ["Endpoint", "OpenAIChatPolicy", "Patience", "Sampling"]

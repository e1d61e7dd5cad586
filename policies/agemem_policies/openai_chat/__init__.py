"""A policy behind any OpenAI-compatible endpoint."""

from agemem_policies.openai_chat.policy import Endpoint, OpenAIChatPolicy, Patience, Sampling

__all__ = ["Endpoint", "OpenAIChatPolicy", "Patience", "Sampling"]

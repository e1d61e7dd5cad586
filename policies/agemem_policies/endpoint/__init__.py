"""``/v1/chat/completions``: a chat for any OpenAI client, its memory managed by the agent."""

from agemem_policies.endpoint.router import routes

__all__ = ["routes"]

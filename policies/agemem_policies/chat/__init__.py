"""``agemem-mcp chat``: a conversation in the terminal, with what it does to memory in view."""

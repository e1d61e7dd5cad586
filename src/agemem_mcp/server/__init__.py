"""How the service is reached: MCP tools and HTTP."""

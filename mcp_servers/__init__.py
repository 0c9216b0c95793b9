"""The rooms of the desk, each an MCP server of its own, and what they share."""

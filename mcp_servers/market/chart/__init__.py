"""The chart of a symbol: what is on it, the picture of it, and the page that shows it in hosts that run MCP Apps."""

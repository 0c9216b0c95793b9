"""Where market data comes from: a recording, or public feeds of an exchange."""

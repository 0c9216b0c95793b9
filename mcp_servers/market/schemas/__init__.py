"""What the market tools answer, one module per group of tools."""

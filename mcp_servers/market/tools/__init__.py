"""The tools of the market server, one module per group; each has ``register(read)``."""

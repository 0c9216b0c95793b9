"""One technology per module: the real implementations of ``trading.ports``."""

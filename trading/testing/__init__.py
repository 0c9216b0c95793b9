"""Shipped fakes: real implementations of the ports for tests and examples, with no hidden bypass."""

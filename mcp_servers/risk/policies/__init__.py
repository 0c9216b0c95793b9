"""The rules of the pre-trade check, each a pure function from one order's context to one verdict."""

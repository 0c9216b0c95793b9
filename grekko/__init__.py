"""The desk as a product: command line, supervisor, live view, report, audit and explanation.

This is the composition root, the only package that may import every room. It trades nothing itself: rooms are
processes that it starts and ledgers that it reads.
"""

"""The vocabulary and the rules that every room shares.

Import direction, enforced by import-linter:
``trading.domain <- trading.strategy | trading.ports <- trading.adapters <- rooms <- grekko``.
Nothing in this package imports a server, the coordinator or the command line.
"""

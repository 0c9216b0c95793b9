"""Risk numbers: what the book may lose, how it moves, and what leaving it would cost.

They inform and never permit: no rule reads them, so no number can loosen a limit. numpy is imported by the modules in
here alone, which the room imports when somebody first asks.
"""

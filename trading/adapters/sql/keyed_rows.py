"""A table in memory under its unique keys: the one place that says what a taken key is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trading.adapters.sql.tables import Shape, Values
from trading.domain.errors import AlreadyClaimed

Undo = list[Callable[[], None]]


class KeyedRows:
    """Rows of one table under each of its unique keys, and how to take changes back.

    The in-memory ledger keeps whole tables in it; the durable writer loads only the rows that a batch could collide
    with, so both refuse exactly the same units.
    """

    def __init__(self, shape: Shape, rows: Iterable[Values] = ()) -> None:
        self.shape = shape
        self._by_key: dict[tuple[int, ...], dict[Values, Values]] = {key: {} for key in shape.keys}
        for values in rows:
            self._put(values)

    def insert(self, values: Values, undo: Undo) -> None:
        """Add a row and note how to take it back; raises AlreadyClaimed."""
        for key in self.shape.keys:
            existing = self._by_key[key].get(pick(values, key))
            if existing is not None:
                raise AlreadyClaimed(self.shape.name, self.shape.row(existing))
        self._put(values)
        undo.append(lambda: self._remove(values))

    def upsert(self, values: Values, undo: Undo) -> None:
        """Replace the row with the same primary key or add it; raises AlreadyClaimed for another unique key."""
        old = self._by_key[self.shape.key].get(pick(values, self.shape.key))
        if old is not None:
            self._remove(old)
            undo.append(lambda: self._put(old))
        self.insert(values, undo)

    def sorted(self) -> list[Values]:
        """Return all rows in the order of the primary key."""
        rows = self._by_key[self.shape.key]
        return [rows[key] for key in sorted(rows, key=lambda key: tuple((v is not None, v) for v in key))]

    def _put(self, values: Values) -> None:
        for key, rows in self._by_key.items():
            wanted = pick(values, key)
            if None not in wanted:  # SQL: a NULL equals nothing, so it takes no key
                rows[wanted] = values

    def _remove(self, values: Values) -> None:
        for key, rows in self._by_key.items():
            rows.pop(pick(values, key), None)


def pick(values: Values, positions: tuple[int, ...]) -> Values:
    """Return the values at these positions."""
    return tuple(values[position] for position in positions)


def take_back(undo: Undo) -> None:
    """Undo changes, newest first."""
    for step in reversed(undo):
        step()
    undo.clear()

"""The hourly closes that ship with the room: BTC, ETH, LTC and XRP against USDT, 2019 to 2021 (``data/SOURCE.md``).

A fresh desk has no history of its own. These years hold the falls of March 2020 and May 2021, and what rests on them
always says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trading.domain.identifiers import Currency

from .tails import Column

LABEL: Final = "assumed: 2019-2021 hourly history"
ASSETS: Final = tuple(Currency(name) for name in ("BTC", "ETH", "LTC", "XRP"))
HOUR_MS: Final = 3_600_000
#: Of a logarithmic price: a tenth of a basis point. Prices are rounded to it, not moves, so errors do not add up.
STEP: Final = 1e-5

_FILE: Final = Path(__file__).with_name("data") / "closes_1h_2019_2021.npz"


@dataclass(frozen=True, slots=True)
class Closes:
    """Closing prices at common hours.

    Attributes:
        open_hours: shape (n,), hours since the epoch at which each bar opened, increasing, with the venue's outages
            missing.
        levels: shape (n, assets), closing price over the first one, same order as ``assets``.
    """

    assets: tuple[Currency, ...]
    open_hours: npt.NDArray[np.int64]
    levels: Column

    def returns(self, hours: int) -> Column:
        """Return the simple returns over intervals that do not overlap and end at whole multiples of ``hours``.

        A day ends at 00:00 UTC. An interval is left out when the bar at one of its ends is missing.
        """
        return self._from(np.flatnonzero((self.open_hours + 1) % hours == 0), hours)

    def rolling(self, hours: int) -> Column:
        """Return the simple returns over ``hours`` from every bar whose counterpart exists."""
        return self._from(np.arange(len(self.open_hours)), hours)

    def between(self, first_hour: int, until_hour: int) -> Closes:
        """Return the bars that open within [first_hour, until_hour)."""
        kept = (self.open_hours >= first_hour) & (self.open_hours < until_hour)
        return Closes(self.assets, self.open_hours[kept], self.levels[kept])

    def _from(self, starts: npt.NDArray[np.int64], hours: int) -> Column:
        wanted = self.open_hours[starts] + hours
        found = np.minimum(np.searchsorted(self.open_hours, wanted), len(self.open_hours) - 1)
        there = self.open_hours[found] == wanted
        return self.levels[found[there]] / self.levels[starts[there]] - 1


def pack(path: Path, open_hours: npt.NDArray[np.int64], closes: Column) -> None:
    """Write closes (shape (n, assets)) as differences of rounded logarithms, as this module reads them.

    Raises:
        ValueError: a price is not positive, or one move is beyond the format (a factor of e**0.327).
    """
    if not (closes > 0).all():
        raise ValueError("prices are positive")
    moves = np.diff(np.rint(np.log(closes / closes[0]) / STEP), axis=0)
    if np.abs(moves).max(initial=0) > np.iinfo(np.int16).max:
        raise ValueError("a move is too large for the format")
    np.savez_compressed(
        path,
        first=np.asarray(open_hours[:1], dtype=np.int64),
        hours=np.diff(open_hours).astype(np.uint16),
        moves=np.ascontiguousarray(moves.T).astype(np.int16),
    )


def unpack(path: Path, assets: tuple[Currency, ...] = ASSETS) -> Closes:
    """Read what ``pack`` wrote.

    Raises:
        OSError: the file cannot be read.
    """
    with np.load(path, allow_pickle=False) as held:
        hours = np.concatenate((held["first"], held["hours"].astype(np.int64))).cumsum()
        moves = held["moves"].astype(np.float64).T * STEP
    start = np.zeros((1, moves.shape[1]))
    return Closes(assets, hours, np.exp(np.concatenate((start, moves)).cumsum(axis=0)))


@lru_cache(maxsize=1)
def bundled() -> Closes:
    """Return the closes that ship with the room; read once."""
    return unpack(_FILE)

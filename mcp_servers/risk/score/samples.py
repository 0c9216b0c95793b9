"""What training and evaluation see: one row an hour and asset, with what was known then and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trading.domain.errors import ConfigurationError

from .bars import Bars, Column
from .features import CLOSE_FEATURES, FEATURES, HORIZON_H, falls_after, past_of

#: Between two slices: what an outcome reaches into the next (purge), and as much again (embargo).
GAP_H: Final = 2 * HORIZON_H

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of all assets, by asset and then by time.

    Attributes:
        names: the columns of ``matrix``, shape (n, len(names)), nothing missing.
        fall: worst fall of the next 24 hours, logarithm.  budget: what it is measured against.
        hours: of the close at which a row was known, since the epoch.
        assets: by number.  asset: whose row it is.
        last_common: the last hour at which every asset has a row.
    """

    names: tuple[str, ...]
    matrix: Column
    fall: Column
    budget: Column
    hours: npt.NDArray[np.int64]
    assets: tuple[str, ...]
    asset: npt.NDArray[np.int64]
    last_common: int

    @property
    def came(self) -> Column:
        """1 where the event came, else 0."""
        return (self.fall > self.budget).astype(np.float64)

    def where(self, kept: Mask) -> Samples:
        """Return some of the rows."""
        return Samples(
            self.names,
            self.matrix[kept],
            self.fall[kept],
            self.budget[kept],
            self.hours[kept],
            self.assets,
            self.asset[kept],
            self.last_common,
        )

    def between(self, first_hour: int, until_hour: int) -> Samples:
        """Return the rows known within [first_hour, until_hour)."""
        return self.where((self.hours >= first_hour) & (self.hours < until_hour))

    def before(self, hour: int) -> Samples:
        """Return the rows that may be learned from when a slice begins at ``hour``: purged, and an embargo kept."""
        return self.where(self.hours < hour - GAP_H)


def samples_of(bars: Sequence[Bars]) -> Samples:
    """Return every row whose features and outcome are known.

    Whole bars give all features; when any asset has closes only, all of them are seen by their closes.

    Raises:
        ConfigurationError: there is not a row of every asset.
    """
    names = FEATURES if all(item.whole for item in bars) else CLOSE_FEATURES
    parts: list[tuple[Column, Column, Column, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for number, item in enumerate(bars):
        past, fall = past_of(item), falls_after(item)
        matrix = past.matrix[:, [FEATURES.index(name) for name in names]]
        kept = np.isfinite(matrix).all(axis=1) & np.isfinite(fall)
        if not kept.any():
            raise ConfigurationError(f"{item.asset} has too few hourly bars to learn from: {len(item.close)}")
        hours = item.hours[kept] + 1
        parts.append((matrix[kept], fall[kept], past.budget[kept], hours, np.full(len(hours), number)))
    matrix, fall, budget, hours, asset = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Samples(
        names,
        matrix,
        fall,
        budget,
        hours,
        tuple(item.asset for item in bars),
        asset,
        min(int(part[3][-1]) for part in parts),
    )

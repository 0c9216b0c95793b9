"""What is known of a market at the close of an hour, and what happened after it.

Rules kept here:

- A feature of row t uses bars up to and including t, all of them closed, and never more than ``LOOKBACK`` of them:
  a live desk that keeps so many bars computes what training computed.
- Every feature is a ratio to the market's own deviation over 30 days, or a share, or the calendar: it means the same
  for a calm and a wild asset, and for one that training never saw.
- A row whose past has holes is not guessed: it is NaN, and a score made from it is 1.

The event, in words: *within the next 24 hours the price falls below the close by more than the 95 % budget of the
last 30 days*. The budget is 1.645 times the standard deviation of 24 hours as the last 720 hourly returns give it. A
random walk would do that in 10 % of all days (twice the 5 %, by the reflection principle), and so did BTC, ETH, LTC and
XRP in 2019 to 2021: often enough to measure a calibration, seldom enough to be worth a warning. Had the budget been
that of the *present* volatility, nothing known of volatility could foretell the event; and a trader whose limits are
set once a month is hurt exactly when the present differs from the month.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from .bars import Bars, Column

HORIZON_H: Final = 24
#: Hours that the budget and every ratio look back over.
BASE_H: Final = 720
#: Bars that are enough for every feature of the newest one.
LOOKBACK: Final = BASE_H + 1
#: Standard normal quantile of the budget's 95 %.
BUDGET_Z: Final = 1.6448536269514722
#: Returns that must exist of the last 720, and lows of the next 24.
BASE_MIN: Final = 699
_FUTURE_MIN: Final = 20
_DAY: Final = 24
_WEEK: Final = 168

#: From closes alone, and from whole bars. The order is that of a matrix' columns.
CLOSE_FEATURES: Final = (
    "vol_6h",
    "vol_24h",
    "vol_96h",
    "vol_of_vol_3d",
    "drawdown_7d",
    "move_24h",
    "move_7d",
    "largest_move_24h",
    "down_share_48h",
    "level",
    "hour_sin",
    "hour_cos",
    "weekend",
)
BAR_FEATURES: Final = ("range_12h", "close_location_24h", "volume_ratio_12h")
FEATURES: Final = CLOSE_FEATURES + BAR_FEATURES


@dataclass(frozen=True, slots=True)
class Past:
    """What is known at each bar's close.

    Attributes:
        matrix: shape (n, len(FEATURES)); NaN where it is not known.
        deviation: shape (n,), of an hourly logarithmic return over 30 days; NaN where too many are missing.
    """

    matrix: Column
    deviation: Column

    @property
    def budget(self) -> Column:
        """The fall (logarithm, > 0) that the event is about, shape (n,)."""
        return BUDGET_Z * self.deviation * sqrt(HORIZON_H)


def past_of(bars: Bars) -> Past:
    """Return every feature of every bar."""
    price = np.log(bars.close)
    moves = np.full(len(price), np.nan)
    moves[1:] = np.diff(price)
    squares = moves * moves
    known = np.isfinite(moves)
    deviation = np.sqrt(_weighted(squares, np.ones(BASE_H)))
    enough = np.convolve(known, np.ones(BASE_H))[: len(price)] >= BASE_MIN
    deviation = np.where(enough & (deviation > 0), deviation, np.nan)
    fast = np.log(np.sqrt(_positive(_faded(squares, 6))))
    hour = (bars.hours + 1) % 24  # of the close
    columns: dict[str, Column] = {
        "vol_6h": fast - np.log(deviation),
        "vol_24h": 0.5 * np.log(_positive(_faded(squares, 24))) - np.log(deviation),
        "vol_96h": 0.5 * np.log(_positive(_faded(squares, 96))) - np.log(deviation),
        "vol_of_vol_3d": _rolling_deviation(fast, 72),
        "drawdown_7d": (_rolling_max(price, _WEEK) - price) / (deviation * sqrt(_WEEK)),
        "move_24h": _change(price, _DAY) / (deviation * sqrt(_DAY)),
        "move_7d": _change(price, _WEEK) / (deviation * sqrt(_WEEK)),
        "largest_move_24h": np.log(_positive(_rolling_max(np.abs(moves), _DAY))) - np.log(deviation),
        "down_share_48h": _faded(np.where(moves < 0, squares, np.where(known, 0.0, np.nan)), 48)
        / _positive(_faded(squares, 48)),
        "level": np.log(deviation),
        "hour_sin": np.sin(2 * pi * hour / 24),
        "hour_cos": np.cos(2 * pi * hour / 24),
        "weekend": (((bars.hours + 1) // 24 + 3) % 7 >= 5).astype(np.float64),  # the epoch was a Thursday: 3
        **_of_bars(bars, deviation),
    }
    matrix = np.column_stack([columns[name] for name in FEATURES])
    matrix[~(np.isfinite(deviation) & np.isfinite(price))] = np.nan
    return Past(matrix, deviation)


def falls_after(bars: Bars) -> Column:
    """Return how far the price fell at worst below each close within the next 24 hours: a logarithm, shape (n,).

    By the lows where they are known, else by the closes. NaN for the last 24 bars, and where hours are missing.
    """
    lowest = bars.low if bars.whole else bars.close
    found = np.full(len(bars.close), np.nan)
    if len(found) <= HORIZON_H:
        return found
    ahead = sliding_window_view(lowest, HORIZON_H)[1:]
    enough = np.isfinite(ahead).sum(axis=1) >= _FUTURE_MIN
    worst = np.where(np.isfinite(ahead), ahead, np.inf).min(axis=1)
    count = len(ahead)
    found[:count] = np.where(enough, np.log(bars.close[:count]) - np.log(worst), np.nan)
    return found


def _of_bars(bars: Bars, deviation: Column) -> dict[str, Column]:
    ranges = np.log(bars.high / bars.low) ** 2 / (4 * log(2))  # Parkinson 1980
    top, bottom = _rolling_max(bars.high, _DAY), -_rolling_max(-bars.low, _DAY)
    lately, usual = _faded(bars.volume, 12), _weighted(bars.volume, np.ones(BASE_H))
    return {
        "range_12h": 0.5 * np.log(_positive(_faded(ranges, 12))) - np.log(deviation),
        "close_location_24h": (bars.close - bottom) / _positive(top - bottom),
        "volume_ratio_12h": np.log(_positive(lately)) - np.log(_positive(usual)),
    }


def _faded(values: Column, half_life: int) -> Column:
    """Return the mean of the past six half-lives, the newest weighing most; what is cut off weighs 1.6 %."""
    return _weighted(values, 0.5 ** (np.arange(6 * half_life) / half_life))


def _weighted(values: Column, weights: Column) -> Column:
    known = np.isfinite(values)
    mass = np.convolve(known, weights)[: len(values)]
    total = np.convolve(np.where(known, values, 0.0), weights)[: len(values)]
    # Rounding leaves crumbs where nothing is: less than half an observation counts as none.
    return np.where(mass > 0.5 * weights[-1], total / np.where(mass > 0, mass, 1.0), np.nan)


def _windows(values: Column, length: int) -> npt.NDArray[np.float64]:
    return sliding_window_view(np.concatenate((np.full(length - 1, np.nan), values)), length)


def _rolling_max(values: Column, length: int) -> Column:
    windows = _windows(values, length)
    most = np.where(np.isfinite(windows), windows, -np.inf).max(axis=1)
    return np.where(np.isfinite(most), most, np.nan)


def _rolling_deviation(values: Column, length: int) -> Column:
    windows = _windows(values, length)
    known = np.isfinite(windows)
    count = np.maximum(known.sum(axis=1), 1)
    means = np.where(known, windows, 0.0).sum(axis=1) / count
    spread = np.where(known, windows - means[:, np.newaxis], 0.0)
    return np.where(known.any(axis=1), np.sqrt((spread * spread).sum(axis=1) / count), np.nan)


def _change(values: Column, length: int) -> Column:
    found = np.full(len(values), np.nan)
    found[length:] = values[length:] - values[:-length]
    return found


def _positive(values: Column) -> Column:
    """Return the values, NaN where there is no logarithm and no quotient."""
    return np.where(values > 0, values, np.nan)

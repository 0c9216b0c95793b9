"""Statistics of returns: volatility, drawdown, shape, and how one market moves with another.

Rules kept here:

- A return is the logarithm of the ratio of two closes that are exactly one interval apart; what spans a gap is left
  out. Of two markets only returns that both have are compared.
- Annualised means: times the square root of the intervals in 365 days, for these markets never close.
- Standard errors take the returns as independent of one another; clustered volatility makes the true ones larger.
- With fewer than ``RETURNS_MIN`` returns there is no answer; what is undefined (no movement) is None, never NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt
from typing import TYPE_CHECKING, Final

from trading.domain.errors import InvalidValue
from trading.domain.market_data import Candle

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Column = npt.NDArray[np.float64]

RETURNS_MIN: Final = 20
YEAR_MS: Final = 365 * 86_400_000
#: What a return weighs in the exponentially weighted volatility, compared with the one after it.
EWMA_DECAY: Final = 0.94
_FLAT: Final = 1e-13  # of a logarithmic return: what rounding leaves of no movement at all


@dataclass(frozen=True, slots=True)
class Statistics:
    """What one market did.

    Attributes:
        returns: how many returns were used.
        left_out: pairs of neighbouring bars further apart than one interval.
        volatility: sample standard deviation of the returns, annualised; ``volatility_error`` is its standard error.
        ewma: volatility, annualised, of returns that weigh less the older they are (zero mean, decay 0.94).
        parkinson, garman_klass: volatility, annualised, from the bars' ranges.
        total_return: last close over first close, minus 1.
        max_drawdown: largest fall of the close from a peak before it, as a share of the peak, >= 0.
        skew, excess_kurtosis: adjusted for the size of the sample; 0 for a normal distribution.
    """

    returns: int
    left_out: int
    volatility: float
    volatility_error: float | None
    ewma: float
    parkinson: float
    garman_klass: float
    total_return: float
    max_drawdown: float
    skew: float | None
    excess_kurtosis: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a market moved with a benchmark.

    Attributes:
        returns: how many returns both had.
        beta: slope of the least-squares line of the market's returns on the benchmark's.
        beta_error, correlation_error: standard errors, with ``returns - 2`` degrees of freedom.
    """

    returns: int
    correlation: float | None
    correlation_error: float | None
    beta: float | None
    beta_error: float | None


def measure(candles: Sequence[Candle], *, name: str = "the market") -> Statistics:
    """Return the statistics of one market.

    Args:
        candles: closed, of one timeframe, oldest first.
        name: what to call it in a refusal.

    Raises:
        InvalidValue: code NOT_ENOUGH_HISTORY. code CANDLE_OPEN.
    """
    import numpy as np

    by_time = log_returns(candles)
    _require(len(by_time), f"returns of {name}")
    returns, interval = np.fromiter(by_time.values(), float), candles[0].interval_ms
    first, high, low, close = (
        np.array([float(getattr(candle, name)) for candle in candles]) for name in ("open", "high", "low", "close")
    )
    deviation = _deviation(returns)
    skew, kurtosis = _shape(returns, deviation)
    ranges, bodies = np.log(high / low) ** 2, np.log(close / first) ** 2
    peaks = np.maximum.accumulate(close)
    return Statistics(
        returns=len(returns),
        left_out=len(candles) - 1 - len(returns),
        volatility=annualised(deviation, interval),
        volatility_error=_deviation_error(returns, deviation, interval),
        ewma=annualised(sqrt(_weighted_square(returns)), interval),
        parkinson=annualised(sqrt(float(ranges.mean()) / (4 * log(2))), interval),
        garman_klass=annualised(sqrt(float((0.5 * ranges - (2 * log(2) - 1) * bodies).mean().clip(0))), interval),
        total_return=float(close[-1] / close[0] - 1),
        max_drawdown=float((1 - close / peaks).max()),
        skew=skew,
        excess_kurtosis=kurtosis,
    )


def compare(candles: Sequence[Candle], benchmark: Sequence[Candle], *, name: str = "both") -> Comparison:
    """Return how a market moved with a benchmark, over the returns that both have.

    Args:
        candles, benchmark: closed, of one timeframe, oldest first.
        name: what to call the two in a refusal.

    Raises:
        InvalidValue: code NOT_ENOUGH_HISTORY. code CANDLE_OPEN.
    """
    import numpy as np

    mine, theirs = log_returns(candles), log_returns(benchmark)
    common = sorted(mine.keys() & theirs.keys())
    _require(len(common), f"returns at the same times of {name}")
    y, x = (np.array([found[time] for time in common]) for found in (mine, theirs))
    moved, led = _deviation(y), _deviation(x)
    if led == 0:
        return Comparison(len(common), None, None, None, None)
    dy, dx, free = y - y.mean(), x - x.mean(), len(common) - 2
    beta = float(dx @ dy / (dx @ dx))
    rest = dy - beta * dx
    correlation = None if moved == 0 else float(np.clip(dx @ dy / np.sqrt((dx @ dx) * (dy @ dy)), -1, 1))
    return Comparison(
        returns=len(common),
        correlation=correlation,
        correlation_error=None if correlation is None else sqrt((1 - correlation**2) / free),
        beta=beta,
        beta_error=sqrt(float(rest @ rest / free / (dx @ dx))),
    )


def log_returns(candles: Sequence[Candle]) -> Mapping[int, float]:
    """Return the logarithmic return of each bar whose neighbour before it is there, by its opening time.

    Raises:
        InvalidValue: code CANDLE_OPEN. code GARBAGE: a price is not positive.
    """
    if any(candle.low <= 0 for candle in candles):
        raise InvalidValue("a candle has a price that is not positive", code="GARBAGE")
    if any(not candle.closed for candle in candles):
        raise InvalidValue("statistics take closed candles only", code="CANDLE_OPEN")
    return {
        later.open_ts_ms: log(float(later.close) / float(earlier.close))
        for earlier, later in pairwise(candles)
        if later.open_ts_ms - earlier.open_ts_ms == later.interval_ms
    }


def annualised(deviation: float, interval_ms: int) -> float:
    """Return a deviation per interval as one per 365 days."""
    return deviation * sqrt(YEAR_MS / interval_ms)


def _require(count: int, what: str) -> None:
    if count < RETURNS_MIN:
        raise InvalidValue(
            f"{RETURNS_MIN} {what} are needed; there are {count}",
            code="NOT_ENOUGH_HISTORY",
            suggestion="ask for a longer lookback or a shorter timeframe",
        )


def _deviation(returns: Column) -> float:
    """Return the sample standard deviation, 0 for what is only rounding."""
    found = float(returns.std(ddof=1))
    return found if found > _FLAT else 0.0


def _deviation_error(returns: Column, deviation: float, interval_ms: int) -> float | None:
    """Return the large-sample standard error of the deviation, fat tails counted, annualised."""
    if deviation == 0:
        return None
    centred = returns - returns.mean()
    variance = float((centred**2).mean())
    fourth = float((centred**4).mean())
    return annualised(sqrt(max(0.0, fourth - variance**2) / len(returns)) / (2 * sqrt(variance)), interval_ms)


def _weighted_square(returns: Column) -> float:
    import numpy as np

    weights = EWMA_DECAY ** np.arange(len(returns))[::-1]
    return float(weights @ returns**2 / weights.sum())


def _shape(returns: Column, deviation: float) -> tuple[float | None, float | None]:
    """Return skewness and excess kurtosis, adjusted for the size of the sample."""
    if deviation == 0:
        return None, None
    count = len(returns)
    centred = returns - returns.mean()
    second, third, fourth = (float((centred**power).mean()) for power in (2, 3, 4))
    skew = third / second**1.5 * sqrt(count * (count - 1)) / (count - 2)
    excess = fourth / second**2 - 3
    return skew, (count - 1) / ((count - 2) * (count - 3)) * ((count + 1) * excess + 6)

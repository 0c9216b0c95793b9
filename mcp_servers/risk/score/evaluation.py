"""How good probabilities are: scores, reliability, coverage tests and a bootstrap that respects time. Pure numpy.

Sources: Brier 1950; Kupiec, J. of Derivatives 1995; Christoffersen, Int. Economic Review 1998; Politis and Romano 1992
(circular block bootstrap).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, exp, log, sqrt
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]
Hours = npt.NDArray[np.int64]

_LEAST: Final = 1e-6
#: Bins of a reliability curve: upper edges. Narrow where most forecasts are.
EDGES: Final = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Bin:
    """Forecasts within [from, to): how many, what they said, what came true."""

    low: float
    high: float
    n: int
    said: float
    came: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How good one series of probabilities was.

    Attributes:
        brier: mean squared error.  log_loss: natural, probabilities cut at 1e-6.
        auprc: average precision; the rate of the event for a forecast without knowledge.
        ece: mean distance of said and came over the bins, weighed by n.
    """

    n: int
    brier: float
    log_loss: float
    auprc: float
    ece: float
    said: float
    came: float
    bins: tuple[Bin, ...]


def quality(said: Column, came: Column) -> Quality:
    """Return the figures of probabilities (shape (n,), within [0, 1]) and outcomes (0 or 1)."""
    clipped = np.clip(said, _LEAST, 1 - _LEAST)
    bins = reliability(said, came)
    n = len(said)
    return Quality(
        n=n,
        brier=float(np.mean((said - came) ** 2)),
        log_loss=float(-np.mean(came * np.log(clipped) + (1 - came) * np.log(1 - clipped))),
        auprc=average_precision(said, came),
        ece=sum(item.n * abs(item.said - item.came) for item in bins) / n,
        said=float(said.mean()),
        came=float(came.mean()),
        bins=bins,
    )


def reliability(said: Column, came: Column, edges: tuple[float, ...] = EDGES) -> tuple[Bin, ...]:
    """Return the bins that hold a forecast."""
    place = np.minimum(np.searchsorted(edges, said, side="right"), len(edges) - 1)
    lows = (0.0, *edges)
    return tuple(
        Bin(
            lows[number],
            edges[number],
            int(inside.sum()),
            float(said[inside].mean()),
            float(came[inside].mean()),
        )
        for number in range(len(edges))
        if (inside := place == number).any()
    )


def average_precision(said: Column, came: Column) -> float:
    """Return the area under precision and recall, as a sum of steps; forecasts that tie count as one step."""
    positives = float(came.sum())
    if not positives:
        return 0.0
    order = np.argsort(-said, kind="stable")
    ranked, hits = said[order], np.cumsum(came[order])
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    precision, recall = hits[last] / (last + 1), hits[last] / positives
    return float(np.sum(np.diff(np.concatenate(([0.0], recall))) * precision))


@dataclass(frozen=True, slots=True)
class Coverage:
    """Whether a level was passed as often as stated, and whether passes came in clusters.

    Attributes:
        level: stated probability of a pass.  n, passes: forecasts and passes.
        pof: Kupiec's likelihood ratio, one degree of freedom; independence: Christoffersen's, one; conditional: their
            sum, two. The p values beside them.
    """

    level: float
    n: int
    passes: int
    pof: float
    pof_p: float
    independence: float
    independence_p: float
    conditional: float
    conditional_p: float


def coverage(passed: npt.NDArray[np.bool_], level: float) -> Coverage:
    """Test a series of passes (shape (n,), in order of time, not overlapping) against their stated probability."""
    n, passes = len(passed), int(passed.sum())
    pof = 2 * (_likelihood(n - passes, passes, passes / n) - _likelihood(n - passes, passes, level))
    before, after = passed[:-1], passed[1:]
    stay, come = int((~before & ~after).sum()), int((~before & after).sum())
    go, remain = int((before & ~after).sum()), int((before & after).sum())
    calm, struck = stay + come, go + remain
    apart = _likelihood(stay, come, come / calm if calm else 0.0)
    apart += _likelihood(go, remain, remain / struck if struck else 0.0)
    together = _likelihood(stay + go, come + remain, (come + remain) / max(1, calm + struck))
    independence = max(0.0, 2 * (apart - together))
    pof = max(0.0, pof)
    both = pof + independence
    return Coverage(level, n, passes, pof, _p_one(pof), independence, _p_one(independence), both, exp(-both / 2))


def _likelihood(misses: int, hits: int, rate: float) -> float:
    """Return the logarithm of (1-rate)**misses * rate**hits, with 0**0 = 1."""
    found = 0.0
    if misses:
        found += misses * log(max(1 - rate, 1e-300))
    if hits:
        found += hits * log(max(rate, 1e-300))
    return found


def _p_one(ratio: float) -> float:
    return erfc(sqrt(ratio / 2))


def implied_level(said: Column, budget: Column, level: float) -> Column:
    """Return the fall that a probability implies at another level, as a logarithm, shape (n,).

    A probability p of a fall beyond ``budget`` is that of a random walk whose deviation over the horizon is
    budget / -Phi^-1(p / 2) (reflection principle); the fall that walk passes with probability ``level`` follows.
    """
    normal = NormalDist()
    quantiles = np.asarray([-normal.inv_cdf(p / 2) for p in np.clip(said, _LEAST, 1 - _LEAST)])
    return budget / quantiles * -normal.inv_cdf(level / 2)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def positive(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0


def block_bootstrap(
    differences: Column, hours: Hours, *, block: int, draws: int = 2_000, seed: int = 1, level: float = 0.95
) -> Interval:
    """Return the mean of differences and its percentile interval by the circular block bootstrap.

    Args:
        differences: shape (n,), such as one Brier score less another.
        hours: shape (n,), when; several assets may share an hour, and are drawn together.
        block: hours drawn together; at least twice the horizon, since outcomes overlap.
    """
    moments, place = np.unique(hours, return_inverse=True)
    sums, counts = np.bincount(place, differences), np.bincount(place).astype(np.float64)
    length = len(moments)
    block = min(block, length)
    sums, counts = (np.concatenate(([0.0], np.cumsum(np.concatenate((each, each[:block]))))) for each in (sums, counts))
    random = np.random.default_rng(seed)
    starts = random.integers(0, length, (draws, -(-length // block)))
    total = (sums[starts + block] - sums[starts]).sum(axis=1)
    means = total / (counts[starts + block] - counts[starts]).sum(axis=1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(differences.mean()), float(low), float(high))

"""Value at risk and expected shortfall of one series of profits, by four methods.

Rules kept here:

- A series holds the profit and loss of the *present* book over past intervals, oldest first, in quote.
- VaR is a loss, >= 0: the smallest amount that is lost or exceeded with probability at most ``1 - confidence``. ES is
  the mean of the worst ``1 - confidence`` of the probability mass, so it is never below VaR.
- A method that has too few observations to have seen such a loss twice gives no number and says how many it needs.
- Nothing in here returns NaN or infinity; a series that holds one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import erf, exp, pi, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]

#: What an interval's squared return weighs compared with the one after it (RiskMetrics 1996, daily).
EWMA_DECAY: Final = 0.94
#: What an observation weighs compared with the one after it (Boudoukh, Richardson and Whitelaw 1998).
AGE_DECAY: Final = 0.99
#: Intervals that only warm the variance up: what they started from weighs 0.94**30 = 16 % afterwards.
WARM_UP: Final = 30
_BLOCK: Final = 1_000  # 0.94**-1000 = 7e26 is far from overflow


class Method(StrEnum):
    """How the distribution of the next interval's profit is guessed."""

    HISTORICAL = "historical"  # as every past interval, each as likely
    AGED = "historical_aged"  # the older the less likely
    EWMA = "ewma_normal"  # normal, with the exponentially weighted variance: too small for fat tails
    FILTERED = "filtered"  # past intervals scaled to the present variance (filtered historical simulation)


@dataclass(frozen=True, slots=True)
class Tail:
    """VaR and ES of one method, or why there are none.

    Attributes:
        confidence: such as 0.99.
        var, es: quote, >= 0; None when there is not enough history.
        n: observations that were used.
        problem: why there is no number; empty when there is.
    """

    method: Method
    confidence: float
    var: float | None
    es: float | None
    n: int
    problem: str = ""


def tails(
    profits: Column, confidences: tuple[float, ...] = (0.95, 0.99), *, methods: tuple[Method, ...] = tuple(Method)
) -> list[Tail]:
    """Return VaR and ES of the next interval by every method and confidence.

    Args:
        profits: shape (n,), quote, oldest first.
        confidences: each within (0.5, 1).

    Raises:
        ValueError: a profit is not finite, or a confidence is none.
    """
    _check(profits, confidences)
    variances = ewma_variances(profits) if len(profits) >= WARM_UP else np.empty(0)
    return [_tail(method, confidence, profits, variances) for method in methods for confidence in confidences]


def needed(method: Method, confidence: float) -> int:
    """Return how many observations a method needs: two of them in the tail, besides those that warm it up."""
    in_tail = round(2 / (1 - confidence))
    if method is Method.EWMA:
        return WARM_UP
    return in_tail + (WARM_UP if method is Method.FILTERED else 0)


def ewma_variances(profits: Column, decay: float = EWMA_DECAY) -> Column:
    """Return the variance forecast for every interval, made before it, and for the one after the last.

    Args:
        profits: shape (n,), n >= 1; their mean is taken as zero.

    Returns:
        Shape (n + 1,). The first is the mean square of the first ``WARM_UP`` profits.
    """
    squares = profits * profits
    found = np.empty(len(squares) + 1)
    found[0] = level = float(squares[:WARM_UP].mean())
    for start in range(0, len(squares), _BLOCK):  # in closed form: level_k = d**k (level_0 + (1-d) sum s_i d**-(i+1))
        part = squares[start : start + _BLOCK]
        faded = decay ** np.arange(1.0, len(part) + 1)
        found[start + 1 : start + len(part) + 1] = faded * (level + (1 - decay) * np.cumsum(part / faded))
        level = float(found[start + len(part)])
    return found


def weighted_tail(losses: Column, weights: Column | None, confidence: float) -> tuple[float, float]:
    """Return (VaR, ES) of losses with given probabilities, neither below zero.

    Args:
        losses: shape (n,), n >= 1, a loss being positive.
        weights: shape (n,), > 0, in any scale; None for equal ones.
    """
    mass = 1 - confidence
    order = np.argsort(-losses, kind="stable")
    worst = losses[order]
    share = np.full(len(worst), 1 / len(worst)) if weights is None else weights[order] / weights.sum()
    before = np.cumsum(share) - share
    inside = np.clip(mass - before, 0.0, share)  # of each observation's probability, what lies in the tail
    reached = int(np.searchsorted(before + share, mass * (1 + 1e-12), side="right"))
    var = float(worst[min(reached, len(worst) - 1)])
    es = float(inside @ worst) / mass
    return max(0.0, var), max(0.0, es, var)


def normal_tail(deviation: float, confidence: float) -> tuple[float, float]:
    """Return (VaR, ES) of a normal loss with mean zero and that standard deviation."""
    z = normal_quantile(confidence)
    density = exp(-z * z / 2) / sqrt(2 * pi)
    return deviation * z, deviation * density / (1 - confidence)


def normal_quantile(probability: float) -> float:
    """Return the standard normal quantile for a probability within (0, 1), to 1e-12, by bisection and Newton."""
    low, high = -9.0, 9.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if _normal_cdf(middle) < probability else (low, middle)
    z = (low + high) / 2
    for _ in range(4):
        z -= (_normal_cdf(z) - probability) * sqrt(2 * pi) * exp(z * z / 2)
    return z


def _normal_cdf(z: float) -> float:
    return 0.5 * (1 + erf(z / sqrt(2)))


def _tail(method: Method, confidence: float, profits: Column, variances: Column) -> Tail:
    have, need = len(profits), needed(method, confidence)
    if have < need:
        return Tail(method, confidence, None, None, have, f"not enough history: has {have} returns, needs {need}")
    if method is Method.EWMA:
        return Tail(method, confidence, *normal_tail(sqrt(variances[-1]), confidence), have)
    if method is Method.FILTERED:
        scaled = _to_present(profits, variances)
        return Tail(method, confidence, *weighted_tail(-scaled, None, confidence), len(scaled))
    weights = AGE_DECAY ** np.arange(have - 1, -1, -1.0) if method is Method.AGED else None
    return Tail(method, confidence, *weighted_tail(-profits, weights, confidence), have)


def _to_present(profits: Column, variances: Column) -> Column:
    """Return the past profits after the warm-up, each scaled from its own deviation to the present one."""
    own = np.sqrt(variances[WARM_UP:-1])
    safe = np.where(own > 0, own, 1.0)
    return np.where(own > 0, profits[WARM_UP:] / safe, 0.0) * sqrt(variances[-1])


def _check(profits: Column, confidences: tuple[float, ...]) -> None:
    if profits.ndim != 1 or not np.isfinite(profits).all():
        raise ValueError("profits must be one finite column")
    if not all(0.5 < confidence < 1 for confidence in confidences):
        raise ValueError("a confidence lies between 0.5 and 1")

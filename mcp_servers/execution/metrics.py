"""How long each stage of a submit takes, and what came of it. Bounded, in memory, from the start of the process."""

from __future__ import annotations

from collections import Counter, deque
from enum import StrEnum
from typing import NamedTuple


class Stage(StrEnum):
    """The parts of a submit, in their order."""

    READ = "read"
    GATE = "gate"
    PREPARE = "prepare"
    CLAIM = "claim"
    SEND = "send"
    ANSWER = "answer"
    RECORD = "record"
    TOTAL = "total"


class Latency(NamedTuple):
    """Percentiles of one stage in milliseconds over the last samples; each order counts once."""

    orders: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Metrics:
    """Latencies by stage and counts by outcome.

    Args:
        kept: samples a stage keeps for its percentiles.
    """

    def __init__(self, *, kept: int = 4_096) -> None:
        self._samples: dict[Stage, deque[tuple[int, int]]] = {stage: deque(maxlen=kept) for stage in Stage}
        self.counts: Counter[str] = Counter()

    def observe(self, stage: Stage, elapsed_ns: int, *, orders: int = 1) -> None:
        """Record that ``orders`` orders together spent ``elapsed_ns`` in a stage: each of them waited that long."""
        if orders > 0:
            self._samples[stage].append((elapsed_ns, orders))

    def count(self, name: str, by: int = 1) -> None:
        """Count an outcome."""
        self.counts[name] += by

    def latency(self, stage: Stage) -> Latency:
        """Return the percentiles of a stage, all zero before its first sample."""
        samples = sorted(self._samples[stage])
        total = sum(orders for _, orders in samples)
        if not total:
            return Latency(0, 0.0, 0.0, 0.0)
        return Latency(total, _at(samples, total, 50), _at(samples, total, 99), samples[-1][0] / 1e6)


def _at(samples: list[tuple[int, int]], total: int, percent: int) -> float:
    """Return the nearest-rank percentile in milliseconds of weighted samples, sorted."""
    rank = -(-total * percent // 100)
    seen = 0
    for elapsed_ns, orders in samples:
        seen += orders
        if seen >= rank:
            return elapsed_ns / 1e6
    return samples[-1][0] / 1e6

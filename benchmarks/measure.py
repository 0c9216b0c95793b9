"""How a figure is taken, and what it looks like."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table and of ``bench.json``.

    Attributes:
        name: stable, dotted.
        value: in ``unit``; a rate unless the unit is a time.
        limit: the same figure of the bare limit loop in the same run; None where there is none.
        ratio: how near the value comes to the limit, 1 being as good as the limit.
        p50_ms, p99_ms: latency of single operations, nearest rank.
        n: operations measured.
        note: what was measured and what the limit loop is.
    """

    name: str
    value: float
    unit: str
    limit: float | None
    ratio: float | None
    p50_ms: float | None
    p99_ms: float | None
    n: int
    note: str

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one loop gave: operations, seconds and the latency of each in milliseconds.

    Attributes:
        cpu_seconds: processor time of this process, all threads; it drifts less than the rate on a shared machine.
    """

    n: int
    seconds: float
    latencies_ms: list[float]
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.n / self.seconds

    @property
    def cpu(self) -> str:
        """Processor time of one operation, for a note."""
        return f"{self.cpu_seconds / self.n * 1e6:.0f} us CPU"


def percentile(values: list[float], percent: float) -> float | None:
    """Return the nearest-rank percentile, None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(percent * len(ordered)) // 100) - 1)] if ordered else None


def rate_figure(name: str, sample: Sample, limit: Sample | None, note: str, *, unit: str = "1/s") -> Figure:
    """Return a throughput figure beside its limit."""
    return Figure(
        name=name,
        value=round(sample.rate, 1),
        unit=unit,
        limit=None if limit is None else round(limit.rate, 1),
        ratio=None if limit is None else round(sample.rate / limit.rate, 3),
        p50_ms=_rounded(percentile(sample.latencies_ms, 50)),
        p99_ms=_rounded(percentile(sample.latencies_ms, 99)),
        n=sample.n,
        note=note,
    )


def latency_figure(name: str, latencies_ms: list[float], limit_ms: list[float], note: str) -> Figure:
    """Return a latency figure: the value is the p99, the ratio is limit over value."""
    value, limit = percentile(latencies_ms, 99) or 0.0, percentile(limit_ms, 99)
    return Figure(
        name=name,
        value=round(value, 3),
        unit="ms p99",
        limit=_rounded(limit),
        ratio=None if not limit or not value else round(limit / value, 3),
        p50_ms=_rounded(percentile(latencies_ms, 50)),
        p99_ms=_rounded(value),
        n=len(latencies_ms),
        note=note,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


async def in_flight(operation: Callable[[int], Awaitable[object]], *, count: int, width: int) -> Sample:
    """Run ``count`` operations, ``width`` at a time, and time each.

    Args:
        operation: called with its number.
    """
    latencies: list[float] = []
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            started = time.perf_counter()
            await operation(number)
            latencies.append((time.perf_counter() - started) * 1000)

    gc.collect()
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(width)))
    return Sample(count, time.perf_counter() - started, latencies, time.process_time() - cpu)


def in_loop(operation: Callable[[int], object], *, count: int) -> Sample:
    """Run ``count`` plain calls one after another, without timing each."""
    gc.collect()
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        operation(number)
    return Sample(count, time.perf_counter() - started, [], time.process_time() - cpu)


def merged(samples: list[Sample], *, each: int) -> Sample:
    """Return samples taken one after another as one, every operation of theirs standing for ``each`` smaller ones."""
    return Sample(
        sum(sample.n for sample in samples) * each,
        sum(sample.seconds for sample in samples),
        [latency for sample in samples for latency in sample.latencies_ms],
        sum(sample.cpu_seconds for sample in samples),
    )

"""How long a message takes to the venue and back."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Protocol

from trading.domain.errors import ConfigurationError


class Latency(Protocol):
    """Draws the duration of one leg."""

    def leg_ns(self) -> int:
        """Return nanoseconds, >= 0, for the next message in one direction."""
        ...


class NoLatency:
    """Messages arrive at once; costs nothing."""

    def leg_ns(self) -> int:
        """Return 0."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySettings:
    """A lognormal body with a rare slow tail, one way.

    Attributes:
        median_ms: half of the messages are faster, > 0.
        sigma: of the logarithm, >= 0; 0.25 puts 99 % below 1.8 medians.
        tail_probability: in [0, 1]; how often a message is held up.
        tail_factor: how many times slower it then is, >= 1.
        max_ms: nothing takes longer than this.
    """

    median_ms: float = 15.0
    sigma: float = 0.25
    tail_probability: float = 0.01
    tail_factor: float = 8.0
    max_ms: float = 2_000.0

    def __post_init__(self) -> None:
        sane = self.median_ms > 0 and self.sigma >= 0 and 0 <= self.tail_probability <= 1
        if not sane or self.tail_factor < 1 or self.max_ms < self.median_ms:
            raise ConfigurationError(
                "latency: median > 0, sigma >= 0, probability in [0, 1], factor >= 1, max >= median"
            )


class SeededLatency:
    """The same durations for the same seed and number of messages.

    Args:
        settings: shape of the distribution.
        seed: of the generator.
    """

    def __init__(self, settings: LatencySettings, seed: int) -> None:
        self._settings = settings
        self._random = random.Random(seed)
        self._mu = math.log(settings.median_ms)

    def leg_ns(self) -> int:
        """Return the duration of the next leg."""
        shape = self._settings
        ms = self._random.lognormvariate(self._mu, shape.sigma)
        if self._random.random() < shape.tail_probability:
            ms *= shape.tail_factor
        return int(min(ms, shape.max_ms) * 1_000_000)

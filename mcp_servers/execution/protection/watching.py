"""What is wrong with the protection of one position, said once for as long as it lasts."""

from __future__ import annotations

from collections.abc import Callable

from mcp_servers.execution.protection.alarms import BLIND, EXPIRING, MISSING, Episodes
from mcp_servers.execution.protection.exits import StandingExits
from mcp_servers.execution.protection.posts import Post
from mcp_servers.execution.protection.prices import Touch
from trading.domain.standing_exits import StandingExit
from trading.ports.clock import Clock


class Watching:
    """Begins and ends alarms about positions.

    Args:
        is_risk_heard: whether risk was heard lately.
    """

    def __init__(
        self, episodes: Episodes, exits: StandingExits, clock: Clock, is_risk_heard: Callable[[], bool]
    ) -> None:
        self._episodes = episodes
        self._exits = exits
        self._clock = clock
        self._is_risk_heard = is_risk_heard

    def price(self, post: Post, touch: Touch | None) -> None:
        """Take the price that was found, None when neither feed nor venue had one."""
        name = post.instrument.id
        if touch is not None:
            post.blind_ms = None
            self._episodes.end(BLIND, name)
            return
        if post.blind_ms is None:
            post.blind_ms = self._clock.now_ms()
        where = "a stop rests at the venue" if post.resting is not None else "no stop rests at the venue"
        self._episodes.begin(BLIND, name, f"neither the feed nor the venue has a fresh price; {where}")

    def missing(self, post: Post) -> None:
        """Note that the position has no exit that could be used."""
        guard = post.open_guard
        held = None if guard is None else self._exits.of(post.instrument.id, guard.side)
        why = "risk has signed no exit for it" if held is None else "its exit has expired"
        self._episodes.begin(MISSING, post.instrument.id, f"the position has no stop that could act: {why}")

    def life(self, post: Post, found: StandingExit) -> None:
        """Note the age of the exit: half over it should have been renewed, at three quarters a living risk is late."""
        life_ms, age_ms = found.terms.expires_ms - found.issued_ms, self._clock.now_ms() - found.issued_ms
        late = 2 * age_ms >= life_ms and not self._is_risk_heard()
        if late or 4 * age_ms >= 3 * life_ms:
            left_s = max(0, life_ms - age_ms) // 1_000
            text = f"the exit of the position ends in {left_s} s and risk has not renewed it; then no stop acts"
            self._episodes.begin(EXPIRING, post.instrument.id, text)
        else:
            self._episodes.end(EXPIRING, post.instrument.id)

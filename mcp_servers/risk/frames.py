"""Where a frame comes from: one look at everything risk knows, taken without waiting."""

from __future__ import annotations

from collections.abc import Callable

from trading.domain.proposals import Mode
from trading.ports.clock import Clock

from .breaker import Breaker
from .context import Frame
from .daily import DailyResult
from .drawdown import Drawdown
from .heartbeat import ExecutionPulse
from .limits import Policy
from .markets import Markets, marks_of
from .portfolio import Portfolio
from .score.live import LiveScores


class FrameSource:
    """Builds frames.

    Args:
        policy: in force from the next frame on; may be replaced at any time.
        checked_ns: monotonic time of the newest complete read of execution's ledger, None before the first.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        mode: Mode,
        policy: Policy,
        markets: Markets,
        portfolio: Portfolio,
        breaker: Breaker,
        pulse: ExecutionPulse,
        daily: DailyResult,
        drawdown: Drawdown,
        scores: LiveScores,
        checked_ns: Callable[[], int | None],
    ) -> None:
        self._clock = clock
        self._mode = mode
        self.policy = policy
        self._markets = markets
        self._portfolio = portfolio
        self._breaker = breaker
        self._pulse = pulse
        self._daily = daily
        self._drawdown = drawdown
        self._scores = scores
        self._checked_ns = checked_ns

    def now_ms(self) -> int:
        """Return risk's clock."""
        return self._clock.now_ms()

    def take(self) -> Frame:
        """Return the desk as it is now."""
        now_ms = self._clock.now_ms()
        checked_ns = self._checked_ns()
        if checked_ns is not None:
            self._portfolio.polled(now_ms - (self._clock.monotonic_ns() - checked_ns) // 1_000_000)
        markets = self._markets.frames(self.policy.limits, now_ms)
        marks = marks_of(markets, self._portfolio.quote)
        result, equity = self._portfolio.trading_result(marks), self._portfolio.equity(marks)
        execution_age_ms = self._pulse.age_ms(now_ms)
        self._portfolio.activity.flow.expire(now_ms, self.policy.limits.turnover_window_ms)
        return Frame(
            now_ms=now_ms,
            mode=self._mode,
            policy=self.policy,
            state=self._breaker.state,
            scopes=self._breaker.scopes,
            epoch=self._breaker.epoch,
            markets=markets,
            marks=marks,
            portfolio=self._portfolio,
            portfolio_age_ms=self._portfolio.age_ms(now_ms),
            execution_age_ms=execution_age_ms,
            daily_result=self._daily.of(result, now_ms),
            equity=equity,
            drawdown_pct=self._drawdown.of(result, equity),
            unresolved=None if execution_age_ms is None else self._pulse.unresolved,
            scores=self._scores,
        )

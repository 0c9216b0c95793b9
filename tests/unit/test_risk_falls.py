"""March 2020 and May 2021, hour by hour as ticks: the breaker trips on the first tick that breaches, and holds.

Each day begins with a position in BTC and ETH. An hour is played as four ticks, a quarter of an hour apart, the adverse
extreme first (open, low, high, close), each a book of its own; BTC's book comes before ETH's. Which tick must trip is
worked out here from the prices alone, in fractions, without the room's code.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from mcp_servers.risk.limits import RiskLimits
from tests.risk_support import BINANCE, Desk, calm_breaker, codes, open_desk, order, sell, wide_limits, wide_symbol
from trading.domain.approvals import Effect
from trading.domain.events import AlarmRaised, BreakerTripped
from trading.domain.identifiers import Currency, Symbol
from trading.domain.instruments import InstrumentId
from trading.domain.proposals import OrderType
from trading.testing.builders import build_book, build_instrument
from trading.testing.clock import ManualClock

HOURS: Final = Path(__file__).parent.parent / "data" / "risk_falls" / "ohlc_1h.csv.gz"
BTC, ETH = Symbol("BTC/USDT"), Symbol("ETH/USDT")
SYMBOLS: Final = (BTC, ETH)
STEP: Final = Decimal("0.00001")
TICK: Final = Decimal("0.01")
CASH: Final = 100_000
#: Quote bought of each symbol at the first price of the day.
BOUGHT: Final = {BTC: 40_000, ETH: 20_000}
FEE: Final = Fraction(1, 1000)
QUARTER_MS: Final = 900_000
DAY_MS: Final = 86_400_000
#: A test desk's clock starts later than these days, so each is played on the first whole day it has.
MIDNIGHT_MS: Final = (ManualClock().now_ms() // DAY_MS + 1) * DAY_MS

LOSS: Final = Decimal(2_500)
HARD_LOSS, DRAWDOWN_PCT, RANGE_BPS = 6_000, 8, 600


class Tick(NamedTuple):
    """One new price of one symbol."""

    at_ms: int
    symbol: Symbol
    price: Decimal


@lru_cache(maxsize=1)
def days() -> dict[str, list[Tick]]:
    """Return the ticks of each day, by its date."""
    bars: dict[int, dict[Symbol, list[Decimal]]] = {}
    with gzip.open(HOURS, "rt") as file:
        for row in csv.DictReader(file):
            prices = [Decimal(row[name]) for name in ("open", "low", "high", "close")]
            bars.setdefault(int(row["open_ms"]), {})[Symbol(f"{row['base']}/USDT")] = prices
    found: dict[str, list[Tick]] = {}
    for open_ms, both in sorted(bars.items()):
        day = datetime.fromtimestamp(open_ms / 1_000, UTC).strftime("%Y-%m-%d")
        for quarter in range(4):
            at_ms = MIDNIGHT_MS + open_ms % DAY_MS + quarter * QUARTER_MS
            found.setdefault(day, []).extend(Tick(at_ms, symbol, both[symbol][quarter]) for symbol in SYMBOLS)
    return found


@dataclass
class Expected:
    """Which tick breaches what, from prices alone.

    Attributes:
        first: by what is watched, the position of the first tick that breaches it.
        losses: quote lost since the day began, after each tick.
    """

    first: dict[str, int] = field(default_factory=dict[str, int])
    losses: list[Fraction] = field(default_factory=list[Fraction])

    def scopes(self, trigger: str) -> dict[str, int]:
        """Return which scopes that trigger restricts, and with which tick."""
        if trigger == "range":
            return {f"symbol:{each}": self.first[f"range {each}"] for each in SYMBOLS if f"range {each}" in self.first}
        return {"desk": self.first[trigger]} if trigger in self.first else {}

    @classmethod
    def of(cls, ticks: list[Tick], loss: Decimal) -> Expected:
        """Play the day with the position that ``bought`` gives; ``loss`` is what may be lost in it."""
        entry = {tick.symbol: tick.price + TICK for tick in ticks[: len(SYMBOLS)]}
        held = {symbol: bought(symbol, entry[symbol]) for symbol in SYMBOLS}
        paid = sum((Fraction(held[each]) * Fraction(entry[each]) for each in SYMBOLS), Fraction(0))
        marks = {tick.symbol: Fraction(tick.price) for tick in ticks[: len(SYMBOLS)]}
        found, best = cls(), Fraction(0)
        for index, tick in enumerate(ticks):
            marks[tick.symbol] = Fraction(tick.price)
            worth = sum((Fraction(held[each]) * marks[each] for each in SYMBOLS), Fraction(0))
            result = worth - paid * (1 + FEE)
            found.losses.append(-result)
            best = max(best, result)
            down_pct = 100 * (best - result) / (CASH + best)
            hour = [
                t.price
                for t in ticks[: index + 1]
                if t.symbol == tick.symbol and tick.at_ms - t.at_ms <= 4 * QUARTER_MS
            ]
            moved_bps = 10_000 * (Fraction(max(hour)) / Fraction(min(hour)) - 1)
            for name, breached in (
                ("loss", result <= -Fraction(loss)),
                ("hard loss", result <= -HARD_LOSS),
                ("drawdown", down_pct >= DRAWDOWN_PCT),
                (f"range {tick.symbol}", moved_bps >= RANGE_BPS),
            ):
                if breached:
                    found.first.setdefault(name, index)
        return found


def bought(symbol: Symbol, price: Decimal) -> Decimal:
    return (BOUGHT[symbol] / price).quantize(STEP)


#: What is switched on, and the alarm that it raises.
TRIGGERS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "loss": ({}, "BREAKER_DAILY_LOSS"),
    "hard loss": ({"daily_loss_halt": Decimal(HARD_LOSS)}, "BREAKER_DAILY_LOSS"),
    "drawdown": ({"drawdown_pct": Decimal(DRAWDOWN_PCT)}, "BREAKER_DRAWDOWN"),
    "range": ({"range_bps": Decimal(RANGE_BPS), "range_window_ms": 4 * QUARTER_MS}, "BREAKER_RANGE"),
}


def limits_for(trigger: str, loss: Decimal) -> RiskLimits:
    values = TRIGGERS[trigger][0]
    loss_max = loss if trigger == "loss" else Decimal(10_000_000)
    own = wide_symbol(
        position_quantity_max=Decimal(1_000), order_quantity_max=Decimal(1_000), stop_band_bps=Decimal(9_000)
    )
    return wide_limits(symbols=dict.fromkeys(SYMBOLS, own), daily_loss_max=loss_max, breaker=calm_breaker(**values))


class Day:
    """One day on a desk that holds both symbols."""

    def __init__(self, desk: Desk, ticks: list[Tick]) -> None:
        self.desk = desk
        self.ticks = ticks
        self.prices = {tick.symbol: tick.price for tick in ticks[: len(SYMBOLS)]}

    @classmethod
    async def begin(cls, trigger: str, ticks: list[Tick], loss: Decimal) -> Day:
        desk = await open_desk(limits=limits_for(trigger, loss), cash=str(CASH), symbols=SYMBOLS, start=False)
        desk.clock.advance(ticks[0].at_ms - desk.clock.now_ms())
        for symbol in SYMBOLS:
            data_id = InstrumentId(BINANCE, symbol)
            own = build_instrument(venue="binance")
            desk.market.rules[data_id] = replace(own, id=data_id, base=Currency(symbol.partition("/")[0]))
        day = cls(desk, ticks)
        for tick in ticks[: len(SYMBOLS)]:
            day.publish(tick.symbol)
        desk.pulse()
        await desk.risk.start()
        for symbol, price in list(day.prices.items()):
            ask = price + TICK
            amount = bought(symbol, ask)
            (item,) = (await desk.ask(order(symbol=symbol, amount=amount, limit_price=str(ask)))).approved
            await desk.consume(item)
            await desk.fill(item, amount, str(ask), str(amount * ask * Decimal("0.001")))
        return day

    def publish(self, symbol: Symbol) -> None:
        price, data_id = self.prices[symbol], InstrumentId(BINANCE, symbol)
        book = build_book(
            [(str(price - TICK), "10000")], [(str(price + TICK), "10000")], now_ms=self.desk.clock.now_ms()
        )
        self.desk.market.books[data_id] = replace(book, instrument_id=data_id)

    async def take(self, tick: Tick) -> None:
        """Let one tick pass as the market's stream does."""
        desk = self.desk
        if (later := tick.at_ms - desk.clock.now_ms()) > 0:
            desk.clock.advance(later)
            for symbol in SYMBOLS:
                self.publish(symbol)  # the price before, still fresh
            desk.pulse()
        self.prices[tick.symbol] = tick.price
        self.publish(tick.symbol)
        data_id = InstrumentId(BINANCE, tick.symbol)
        await desk.risk.live.surveillance.take(desk.market.books[data_id])

    def restricted(self) -> set[str]:
        breaker = self.desk.risk.live.breaker
        return {
            scope
            for scope in ("desk", *(f"symbol:{each}" for each in SYMBOLS))
            if breaker.state_of(scope).is_restricted
        }

    async def look(self) -> None:
        """What risk does twice a second, after execution's ledger was read."""
        await self.desk.risk.live.follower.step()
        await self.desk.risk.tick()

    async def try_to_add(self, symbol: Symbol) -> bool:
        """Try every way to add risk; return whether any passed, and let what was approved lapse."""
        ask = self.prices[symbol] + TICK
        wanted = [
            order(symbol=symbol, amount="0.1", limit_price=str(ask)),
            order(symbol=symbol, amount="0.1", order_type=OrderType.MARKET, agent_id="other"),
            order(symbol=symbol, amount="0.2", limit_price=str(self.prices[symbol] - TICK), post_only=True),
        ]
        answer = await self.desk.ask(*wanted)
        for item in answer.approved:
            assert item.approval.effect is Effect.INCREASE
            await self.desk.end(item)
        assert answer.approved or codes(answer) >= {"TRADING_STATE"}
        assert len(answer.approved) in (0, len(wanted)), codes(answer)
        return bool(answer.approved)

    async def leave(self, symbol: Symbol, share: int) -> None:
        """Sell a part of the position; it must pass, whatever is restricted."""
        held = self.desk.risk.portfolio.held(InstrumentId(self.desk.parts.venue, symbol))
        amount = (held / share).quantize(STEP)
        price = self.prices[symbol] - TICK
        kind: dict[str, Any] = {"order_type": OrderType.MARKET} if share == 1 else {"limit_price": str(price)}
        answer = await self.desk.ask(sell(amount, symbol=symbol, reduce_only=True, **kind))
        assert len(answer.approved) == 1, codes(answer)
        if share == 1:
            await self.desk.consume(answer.approved[0])
            await self.desk.fill(answer.approved[0], amount, str(price))
        else:
            await self.desk.end(answer.approved[0])


async def replay(date: str, trigger: str, loss: Decimal = LOSS) -> dict[str, int]:
    """Play one day; return what tripped, and at which tick."""
    ticks = days()[date]
    scopes = Expected.of(ticks, loss).scopes(trigger)
    day = await Day.begin(trigger, ticks, loss)
    for index, tick in enumerate(ticks):
        await day.take(tick)
        assert day.restricted() == {scope for scope, at in scopes.items() if at <= index}, f"tick {index} of {date}"
        if tick.symbol != SYMBOLS[-1]:
            continue
        await day.look()
        over = day.restricted()
        for symbol in SYMBOLS:
            may_add = await day.try_to_add(symbol)
            assert may_add is not bool(over & {"desk", f"symbol:{symbol}"}), f"tick {index} of {date}: {over}"
            await day.leave(symbol, 10)
        if scopes and index // 2 == (max(scopes.values()) + len(ticks)) // 4:
            await day.desk.restart(clean=False)  # a crash forgives nothing
            assert day.restricted() == over
    for symbol in SYMBOLS:
        await day.leave(symbol, 1)
        assert day.desk.risk.portfolio.held(InstrumentId(day.desk.parts.venue, symbol)) == 0
    raised = [event.payload for event in day.desk.ledger.events if isinstance(event.payload, AlarmRaised)]
    assert {each.code for each in raised} == ({TRIGGERS[trigger][1]} if scopes else set())
    tripped = [event.payload for event in day.desk.ledger.events if isinstance(event.payload, BreakerTripped)]
    assert {each.scope for each in tripped if each.by == "policy"} == scopes.keys()
    return scopes


#: The worst days of both months; on each every trigger is reached, BTC and ETH at different ticks.
WORST: Final = ("2020-03-12", "2021-05-19")


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("date", WORST)
async def test_the_worst_days_trip_on_the_first_breaching_tick_and_nothing_passes_afterwards(
    date: str, trigger: str
) -> None:
    assert await replay(date, trigger)


@pytest.mark.parametrize("date", WORST)
async def test_a_loss_of_exactly_the_limit_trips_and_a_hundredth_less_does_not(date: str) -> None:
    found = Expected.of(days()[date], LOSS)
    at = found.first["loss"]
    exact = Decimal(found.losses[at].numerator) / Decimal(found.losses[at].denominator)
    assert Fraction(exact) == found.losses[at]
    assert (await replay(date, "loss", exact))["desk"] == at
    assert (await replay(date, "loss", exact + Decimal("0.01")))["desk"] > at


async def test_a_quiet_day_trips_nothing() -> None:
    quiet = [date for date, ticks in days().items() if not Expected.of(ticks, LOSS).first]
    assert not await replay(quiet[0], "loss")


@pytest.mark.soak
@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("date", days())
async def test_every_day_of_both_months(date: str, trigger: str) -> None:
    await replay(date, trigger)

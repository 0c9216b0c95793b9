"""Puts the numbers of one book together; pure, and every number says what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Final

import numpy as np

from trading.domain.identifiers import Currency

from .bundled import ASSETS, LABEL
from .equity_curve import CurveState
from .history import BENCHMARK, HORIZONS, Returns
from .liquidity import Flattening
from .motion import RETURNS_MIN, beta, concentration, volatility
from .stress import replay
from .tails import WARM_UP, Tail, ewma_variances, tails

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One number.

    Attributes:
        name: stable.  unit: quote, percent, days, ratio.
        value: None when there is none; ``note`` then says why.
        horizon: what it looks ahead or back over; empty when it is of this moment.
        n: observations behind it.  window: their first and last day.
        note: what it rests on, or what must be known to read it.
    """

    name: str
    value: float | None
    unit: str
    n: int
    horizon: str = ""
    window: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class TailOf:
    """One VaR and ES with its horizon and window."""

    horizon: str
    window: str
    tail: Tail


@dataclass(frozen=True, slots=True)
class Book:
    """What is measured.

    Attributes:
        values: quote by asset, either sign, nothing that is zero.
        equity: the account's worth, None when it cannot be known.
    """

    values: Mapping[Currency, float]
    equity: float | None

    @property
    def gross(self) -> float:
        """Sum of sizes, quote."""
        return sum(abs(value) for value in self.values.values())

    @property
    def net(self) -> float:
        """Longs less shorts, quote."""
        return sum(self.values.values())


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is said of one book.

    Attributes:
        history: what the returns rest on, by horizon.
        notes: what a reader must know: assets without history, assets without a price.
    """

    book: Book
    tails: list[TailOf]
    figures: list[Figure]
    history: dict[str, str]
    notes: list[str] = field(default_factory=list[str])


def make_report(
    book: Book, returns: Mapping[str, Returns], flattening: Flattening, curve: CurveState | None, notes: list[str]
) -> Report:
    """Return the report.

    Args:
        book: valued now.
        returns: by horizon; a horizon whose own history is empty is absent and its numbers say so.
        flattening: of the same holdings.
        curve: the desk's equity curve, None before its first point.
        notes: what was noticed when the book was valued.
    """
    found_tails: list[TailOf] = []
    figures = [*_shape(book)]
    history, proxied = dict[str, str](), dict[str, list[Currency]]()
    for horizon, (hours, _) in HORIZONS.items():
        past = returns.get(horizon)
        profits = np.empty(0) if past is None else past.profits(book.values)
        window, label = ("", "no history") if past is None else (past.window, past.label)
        history[horizon] = label
        found_tails += [TailOf(horizon, window, tail) for tail in tails(profits)]
        figures += _motion(book, past, profits, horizon, hours)
        if past is not None and past.proxied:
            proxied[past.label] = list(past.proxied)
    figures += _curve(curve) + _liquidity(flattening) + _stress(book)
    said = [f"no history for {', '.join(names)}: moves as the most volatile asset of it" for names in proxied.values()]
    return Report(book, found_tails, figures, history, [*notes, *said])


def _shape(book: Book) -> list[Figure]:
    values = np.asarray(list(book.values.values()), dtype=np.float64)
    shape, count = concentration(values), len(values)
    share = None if shape is None else 100 * shape.largest_share
    largest = "nothing is held" if shape is None else list(book.values)[shape.largest]
    unknown = "something held has no fresh price" if book.equity is None else ""
    return [
        Figure("gross", book.gross, "quote", count),
        Figure("net", book.net, "quote", count),
        Figure("equity", book.equity, "quote", count, note=unknown),
        Figure("concentration_hhi", None if shape is None else shape.herfindahl, "ratio", count, note="1: one asset"),
        Figure("largest_share", share, "percent", count, note=f"of gross: {largest}"),
    ]


def _motion(book: Book, past: Returns | None, profits: np.ndarray, horizon: str, hours: int) -> list[Figure]:
    n, gross = len(profits), book.gross
    window = "" if past is None else past.window
    if not gross:
        return [Figure("volatility", None, "percent", n, horizon, window, "nothing is held")]
    lack = f"not enough history: has {n} returns, needs {RETURNS_MIN}"
    plain = volatility(profits, hours)
    recent = sqrt(float(ewma_variances(profits)[-1]) * 365 * 24 / hours) if n >= WARM_UP else None
    note = "a year, of gross"
    figures = [
        Figure("volatility", _percent(plain, gross), "percent", n, horizon, window, lack if plain is None else note),
        Figure(
            "volatility_ewma",
            _percent(recent, gross),
            "percent",
            n,
            horizon,
            window,
            f"not enough history: has {n} returns, needs {WARM_UP}" if recent is None else f"{note}, decay 0.94",
        ),
    ]
    slope = None if past is None or past.benchmark is None else beta(profits, past.benchmark)
    why = f"{BENCHMARK} is not priced here" if past is None or past.benchmark is None else lack
    return [
        *figures,
        Figure("beta_btc", None if slope is None else slope.value / gross, "ratio", n, horizon, window, why)
        if slope is None
        else Figure(
            "beta_btc",
            slope.value / gross,
            "ratio",
            slope.n,
            horizon,
            window,
            f"standard error {slope.error / gross:.4g}",
        ),
    ]


def _curve(curve: CurveState | None) -> list[Figure]:
    names = (("drawdown", "percent"), ("drawdown_max", "percent"), ("under_water", "days"), ("under_water_max", "days"))
    if curve is None:
        return [Figure(name, None, unit, 0, note="the equity curve has no point yet") for name, unit in names]
    days = (curve.last_ms - curve.started_ms) / _DAY_MS
    values = (
        100 * curve.drawdown,
        100 * curve.deepest,
        curve.under_water_ms / _DAY_MS,
        curve.longest_ms / _DAY_MS,
    )
    note = f"equity curve since {days:.2f} days, deposits apart"
    return [
        Figure(name, value, unit, 1 + int(days), note=note) for (name, unit), value in zip(names, values, strict=True)
    ]


def _liquidity(found: Flattening) -> list[Figure]:
    held = found.taken + found.left
    note = "books as they are now, fees apart; how long it takes is unknown"
    return [
        Figure("flatten_cost", found.cost, "quote", found.positions, note=note),
        Figure("flatten_cost_bps", 10_000 * found.cost / found.taken if found.taken else None, "bps", found.positions,
               note=note if found.taken else "nothing that a book would take"),
        Figure("flatten_left", 100 * found.left / held if held else 0.0, "percent", found.positions,
               note="of gross: more than the books show, or no fresh book"),
    ]  # fmt: skip


def _stress(book: Book) -> list[Figure]:
    known = np.asarray([book.values.get(asset, 0.0) for asset in ASSETS])
    others = [value for asset, value in book.values.items() if asset not in ASSETS]
    long, short = sum(value for value in others if value > 0), sum(value for value in others if value < 0)
    note = f"loss if its worst stretch began now; {LABEL}, close to close"
    if others:
        note += "; assets outside it move as the worst of it"
    return [
        Figure(f"stress_{item.scenario}", item.amount, "quote", item.n, item.horizon, item.scenario, note)
        for item in replay(known, long, short)
    ]


def _percent(value: float | None, gross: float) -> float | None:
    return None if value is None else 100 * value / gross

"""From a report to the rows of a reply: floats become decimals with six significant digits, never NaN."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Final

from trading.domain.money import MAX_MAGNITUDE, MAX_SCALE, quantize_nearest

from .schemas import FigureRow, Risk, TailRow

if TYPE_CHECKING:
    from .report import Report

_DIGITS: Final = 6


def risk_row(report: Report, scores: Sequence[FigureRow] = (), *, quote: str, basis: str) -> Risk:
    """Return the report as a model reads it, with the rows of the risk scores at its end."""
    return Risk(
        quote=quote,
        basis=basis,
        history=report.history,
        tails=[
            TailRow(
                method=item.tail.method.value,
                horizon=item.horizon,
                confidence=Decimal(str(item.tail.confidence)),
                var=_decimal(item.tail.var),
                es=_decimal(item.tail.es),
                n=item.tail.n,
                window=item.window,
                problem=item.tail.problem,
            )
            for item in report.tails
        ],
        figures=[
            FigureRow(
                name=item.name,
                value=_decimal(item.value),
                unit=item.unit,
                horizon=item.horizon,
                n=item.n,
                window=item.window,
                note=item.note,
            )
            for item in report.figures
        ]
        + list(scores),
        notes=report.notes,
    )


def _decimal(value: float | None) -> Decimal | None:
    if value is None or not isfinite(value):
        return None
    found = Decimal(f"{value:.{_DIGITS}g}")
    return quantize_nearest(found, MAX_SCALE) if abs(found) < MAX_MAGNITUDE else None

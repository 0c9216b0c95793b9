"""The scores as rows of ``risk_get_risk``."""

from __future__ import annotations

from mcp_servers.risk.context import Frame
from mcp_servers.risk.numbers.schemas import FigureRow


def score_rows(frame: Frame) -> list[FigureRow]:
    """Return one row a market: the probability, of what, by which model, and why it is 1 if it is unknown."""
    return [
        FigureRow(
            name=f"risk_score_{item.symbol}",
            value=score.value,
            unit="probability",
            horizon="24h",
            n=score.bars,
            window="",
            note=frame.scores.words(item, frame.now_ms),
        )
        for item, score in ((item, frame.scores.of(item, frame.now_ms)) for item in frame.markets)
    ]

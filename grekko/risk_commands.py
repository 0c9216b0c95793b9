"""``grekko risk``: train and judge the risk score. Needs scikit-learn (extra ``ml``); a running desk does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console

if TYPE_CHECKING:
    from mcp_servers.risk.score.study import Study

app = typer.Typer(help="Train and judge the risk score.", no_args_is_help=True)
console = Console(soft_wrap=True)

_DATA: Final = "bundled, or a folder of hourly recordings (ohlcv_1h_BTCUSDT_*.csv.gz)"
Data = Annotated[str, typer.Option("--data", help=_DATA)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="of everything random")]


@app.command()
def train(
    data: Data = "bundled",
    out: Annotated[Path, typer.Option(help="where the model file goes")] = Path("risk-model.json"),
    seed: Seed = 1,
) -> None:
    """Compare every procedure on time it never saw, and write the model of the one that earns it.

    The same data and seed give the same bytes.
    """
    found = _study(data, seed)
    out.write_text(found.model.to_json(), encoding="utf-8")
    _show(found, f"written: {out}", f"digest for [risk.limits] score_model_digest: {found.model.digest}")


@app.command()
def evaluate(
    data: Data = "bundled",
    out: Annotated[Path, typer.Option(help="the card as Markdown; JSON beside it")] = Path("risk-score.md"),
    seed: Seed = 1,
) -> None:
    """Do the same comparison and write the model card."""
    from mcp_servers.risk.score.card import card_json, card_text
    from mcp_servers.risk.score.model import shipped_model

    found = _study(data, seed)
    out.write_text(card_text(found, shipped=shipped_model().digest), encoding="utf-8")
    beside = out.with_suffix(".json")
    beside.write_text(card_json(found), encoding="utf-8")
    _show(found, f"written: {out} and {beside}")


def _study(data: str, seed: int) -> Study:
    from mcp_servers.risk.score.bars import read_bars
    from mcp_servers.risk.score.study import Plan, study

    return study(read_bars(data), Plan(seed=seed))


def _show(found: Study, *more: str) -> None:
    from mcp_servers.risk.score.card import summary

    for line in (*summary(found), *more):
        console.print(line, markup=False, highlight=False)

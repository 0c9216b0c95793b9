"""`make bench`: run every group, or one with ``--only``, print a table and write ``benchmarks/out/bench.json``."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
from pathlib import Path
from typing import Protocol, cast

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Figure
from mcp_servers.serving import settle_collector

GROUPS = ("risk", "order", "breaker", "market", "market_load", "consensus", "desk")
OUT = Path(__file__).parent / "out" / "bench.json"


class Group(Protocol):
    """A module of figures."""

    async def run(self) -> list[Figure]:
        """Measure and return the figures of this group."""
        ...


def main() -> None:
    """Run the groups that were asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", choices=GROUPS, help="one group")
    only = parser.parse_args().only
    logging.disable(logging.INFO)
    for variable in [
        name for name in os.environ if name in ("REDIS_URL", "DATABASE_URL") or name.startswith("GREKKO_")
    ]:
        del os.environ[variable]  # every desk here is the benchmark's own, whatever the caller's shell says
    console = Console()
    groups = {name: cast("Group", importlib.import_module(f"benchmarks.{name}")) for name in GROUPS}
    settle_collector()  # as every server does
    figures: list[Figure] = []
    for name in (only,) if only else GROUPS:
        console.print(f"==> {name}")
        figures += asyncio.run(groups[name].run())
    console.print(_table(figures))
    for each in figures:
        console.print(f"{each.name}: {each.note}", soft_wrap=True, highlight=False)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(orjson.dumps([figure.as_dict() for figure in figures], option=orjson.OPT_INDENT_2) + b"\n")


def _table(figures: list[Figure]) -> Table:
    table = Table("figure", "value", "limit", "ratio", "p50 ms", "p99 ms", "n", box=None)
    for each in figures:
        table.add_row(
            each.name,
            f"{each.value:,.1f} {each.unit}",
            *("-" if v is None else f"{v:,.3g}" if v < 100 else f"{v:,.0f}" for v in _optional(each)),
            f"{each.n:,}",
        )
    return table


def _optional(figure: Figure) -> tuple[float | None, ...]:
    return figure.limit, figure.ratio, figure.p50_ms, figure.p99_ms


if __name__ == "__main__":
    main()

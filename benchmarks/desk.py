"""The desk: from a decision that is durable to the fill on the paper venue, through the real processes.

Market, risk and execution run as on a desk, each its own process behind its unix socket. The coordinator's pipeline
runs here, with its ledger: plan_route, request_approval (risk verifies all signatures of the vote again), submit. There
is no limit loop: the sum of what the parts cost is measured by the other groups.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, in_flight, latency_figure
from benchmarks.parts import CLOCK, IDS, scratch
from benchmarks.rooms import Rooms, open_rooms
from benchmarks.voting import seat_members
from coordinator.agents import AGENT_IDS
from coordinator.pipeline import Pipeline, PipelineSettings
from mcp_servers.hosting import call
from trading.adapters.signing_keys import load_signer
from trading.adapters.sql import LedgerLocation, open_reader, open_writer

_COUNT = 150
_WARM = 10


async def run() -> list[Figure]:
    """Measure decisions one after another."""
    with scratch() as directory:
        return [await _decisions(directory)]


class _Reached:
    """A room that is connected already, as the pipeline calls it."""

    def __init__(self, rooms: Rooms, name: str) -> None:
        self._client = rooms.clients[name]

    async def call(self, tool: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Return the data of a tool's reply."""
        async with asyncio.timeout(timeout_s):
            return await call(self._client, tool, **arguments)


async def _decisions(directory: Path) -> Figure:
    async with open_rooms(directory / "desk", ("market", "risk", "execution")) as rooms:
        home = rooms.settings.desk_home
        location = LedgerLocation.sqlite(home.path / "ledger")
        async with (
            open_writer("coordinator", location, clock=CLOCK, ids=IDS) as ledger,
            open_reader("execution", location) as execution,
        ):
            signers = {name: load_signer(home.keys("agents") / f"{name}.key", "agent") for name in AGENT_IDS}
            leader = load_signer(home.keys("coordinator") / "leader.key", "leader")
            table = await seat_members(ledger, signers, officer=AGENT_IDS[-1])
            pipeline = Pipeline(
                table.journal,
                risk=_Reached(rooms, "risk"),
                execution=_Reached(rooms, "execution"),
                settings=PipelineSettings(workers=1),
                now_ms=CLOCK.now_ms,
            )
            decided = [await table.decide(AGENT_IDS[0], leader=leader) for _ in range(_WARM + _COUNT)]

            async def walk(number: int) -> None:
                pipeline.take(*decided[number])
                await pipeline.drained()

            worker = asyncio.create_task(pipeline.run())
            try:
                await in_flight(lambda number: walk(_COUNT + number), count=_WARM, width=1)
                sample = await in_flight(walk, count=_COUNT, width=1)
            finally:
                worker.cancel()
                await asyncio.wait({worker})
            filled = len(await execution.rows("orders", {"status": "filled"}))
    assert pipeline.counts["executed"] == _WARM + _COUNT, pipeline.counts
    note = f"market, risk and execution as processes, 3 MCP calls; {filled} of {_WARM + _COUNT} orders filled in full"
    return latency_figure("desk.decision_to_fill", sample.latencies_ms, [], note)

"""Risk and execution as small MCP servers with a memory, to test the coordinator's walk against."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from coordinator.rooms import RoomLink
from mcp_servers.envelope import Reply, Row, ok
from mcp_servers.hosting import DeskServer, build_server, open_client, tool_kind
from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.proposals import Mode


class Route(Row):
    orders: list[dict[str, Any]]


class Answer(Row):
    approval_ids: list[str]
    denials: list[dict[str, Any]]


class Batch(Row):
    orders: list[dict[str, Any]]
    failures: list[dict[str, Any]]


class Balances(Row):
    balances: list[dict[str, Any]]


class FakeRooms:
    """What risk and execution remember, and how they misbehave next.

    Attributes:
        hang: for each tool, how many calls do their work and then never answer.
        lose: for each tool, how many calls never answer and do nothing.
        refuse: for each tool, errors to raise first.
        deny: rules that fail every request.
        gate: codes with which the next submissions are refused.
        state: what becomes of an order.
    """

    def __init__(self) -> None:
        self.requests: dict[str, list[str]] = {}
        self.contents: dict[str, list[dict[str, Any]]] = {}
        self.orders: dict[str, str] = {}
        self.venue_orders: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.hang: Counter[str] = Counter()
        self.lose: Counter[str] = Counter()
        self.refuse: dict[str, list[Exception]] = {}
        self.deny: list[str] = []
        self.gate: list[str] = []
        self.state = "filled"
        self.price = 60_000

    async def _before(self, tool: str) -> None:
        self.calls[tool] += 1
        if self.refuse.get(tool):
            raise self.refuse[tool].pop(0)
        if self.lose[tool] > 0:
            self.lose[tool] -= 1
            await asyncio.Event().wait()

    async def _after(self, tool: str) -> None:
        if self.hang[tool] > 0:
            self.hang[tool] -= 1
            await asyncio.Event().wait()

    def build(self) -> DeskServer[None]:
        """Return a server with the tools of both rooms."""

        @asynccontextmanager
        async def lifespan() -> AsyncGenerator[None]:
            yield

        server = build_server(
            "grekko-fake",
            title="Fake",
            instructions="For tests.",
            lifespan=lifespan,
            mode=Mode.PAPER,
            requests_per_s=1e6,
            burst=1_000_000,
        )
        kind = tool_kind(server, read_only=False, destructive=True, idempotent=True, open_world=False, scope="fake:all")

        @kind(title="Plan")
        async def execution_plan_route(
            symbol: str,
            side: str,
            type: str,  # noqa: A002
            amount: str,
            unit: str,
            time_in_force: str,
            post_only: bool,
            reduce_only: bool,
            venue: str,
            account: str,
            agent_id: str,
            reason: str,
        ) -> Reply[Route]:
            """Plan."""
            await self._before("plan")
            self.price += 1  # a plan is never the same twice, as in a moving market
            child = {"symbol": symbol, "side": side, "type": type, "amount": amount, "unit": unit, "venue": venue}
            await self._after("plan")
            return ok(Route(orders=[{**child, "reason": f"expected {self.price}"}]))

        @kind(title="Approve")
        async def risk_request_approval(
            request_id: str, decision_id: str, orders: list[dict[str, Any]]
        ) -> Reply[Answer]:
            """Approve."""
            await self._before("approve")
            if request_id in self.contents and self.contents[request_id] != orders:
                raise InvalidValue("same id, other content", code="REQUEST_ID_REUSED")
            self.contents[request_id] = orders
            if self.deny:
                denial = {"failures": [{"rule": rule, "message": "no"} for rule in self.deny]}
                return ok(Answer(approval_ids=[], denials=[denial]))
            known = self.requests.setdefault(
                request_id, [f"approval-{len(self.requests)}-{i}" for i, _ in enumerate(orders)]
            )
            await self._after("approve")
            return ok(Answer(approval_ids=known, denials=[]))

        @kind(title="Submit")
        async def execution_submit_orders(approval_ids: list[str]) -> Reply[Batch]:
            """Submit."""
            await self._before("submit")
            if self.gate:
                code = self.gate.pop(0)
                return ok(Batch(orders=[], failures=[{"approval_id": e, "code": code} for e in approval_ids]))
            for each in approval_ids:
                if each not in self.orders:
                    self.orders[each] = f"order-of-{each}"
                    self.venue_orders[each] += 1
            await self._after("submit")
            rows = [
                {"approval_id": each, "order_id": self.orders[each], "state": self.state, "filled": "0"}
                for each in approval_ids
            ]
            return ok(Batch(orders=rows, failures=[]))

        @kind(title="Account")
        async def execution_get_account(account: str) -> Reply[Balances]:
            """Tell the balances."""
            await self._before("account")
            return ok(Balances(balances=[{"currency": "USDT", "total": "100000", "locked": "0"}]))

        return server


@asynccontextmanager
async def linked(rooms: FakeRooms) -> AsyncGenerator[RoomLink]:
    """Yield a link to the fakes that comes back by itself."""
    link = RoomLink("fake", lambda: open_client(rooms.build(), read_timeout_s=5))
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.wait({task})


def unavailable() -> Exception:
    return Unavailable("not now")

"""A small room that the hosting tests serve, in this process and as ``python -m tests.hosting_sample``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mcp_servers.envelope import LookbackMs, Meta, PositiveDecimalText, Reply, Row, ok
from mcp_servers.hosting import Context, DeskServer, build_server, current_principal, serve, state, tool
from trading.domain.errors import ConfigurationError, OutcomeUnknown, StaleData, TradingError, UnknownInstrument
from trading.domain.proposals import Mode


@dataclass
class Sample:
    """The sample's state."""

    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    boom: BaseException | None = None


class Echo(Row):
    amount: PositiveDecimalText
    side: str
    lookback_ms: int
    principal: str


class Nothing(Row):
    done: bool


FAILURES: dict[str, Callable[[], BaseException]] = {
    "unknown": lambda: UnknownInstrument("no BTC/USD", suggestion="did you mean BTC/USDT?", allowed=("BTC/USDT",)),
    "stale": lambda: StaleData("the book is 4 s old"),
    "maybe": lambda: OutcomeUnknown("no answer from the venue"),
    "crash": lambda: RuntimeError("password=hunter2"),
    "grouped": lambda: ExceptionGroup("tasks", [StaleData("inside a task group")]),
    "assert": lambda: AssertionError("secret invariant"),
}


def build(sample: Sample | None = None, **options: Any) -> DeskServer[Sample]:
    """Return the sample server; ``GREKKO_SAMPLE_TRACE`` names a file that its lifespan writes to."""

    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[Sample]:
        trace = os.environ.get("GREKKO_SAMPLE_TRACE")
        if os.environ.get("GREKKO_SAMPLE_REFUSES"):
            raise ConfigurationError("another process holds the lock", code="LOCKED")
        _note(trace, "up")
        try:
            yield sample or Sample()
        finally:
            await asyncio.sleep(0)  # a lifespan that needs the loop to end must get it
            _note(trace, "down")

    options.setdefault("mode", Mode.PAPER)
    server = build_server("grekko-sample", title="Sample", instructions="For tests.", lifespan=lifespan, **options)
    register(server)
    return server


def _note(trace: str | None, text: str) -> None:
    if trace:
        with Path(trace).open("a", encoding="ascii") as file:
            file.write(text + "\n")


def register(server: DeskServer[Sample]) -> None:
    """Add the sample's tools and its resource."""

    @server.resource("sample://facts", mime_type="application/json")
    async def facts() -> str:
        return '{"fact": 1}'

    @tool(
        server,
        title="Echo arguments",
        read_only=True,
        destructive=False,
        idempotent=True,
        open_world=False,
        scope="sample:read",
    )
    async def sample_echo_arguments(
        amount: PositiveDecimalText, side: Literal["buy", "sell"] = "buy", lookback: LookbackMs = 60_000
    ) -> Reply[Echo]:
        """Give the arguments back."""
        found = Echo(amount=amount, side=side, lookback_ms=lookback, principal=current_principal().name)
        return ok(found, Meta(source="sample", age_ms=0))

    @tool(
        server,
        title="Fail somehow",
        read_only=True,
        destructive=False,
        idempotent=True,
        open_world=False,
        scope="sample:read",
    )
    async def sample_fail_somehow(how: Annotated[str, Field(max_length=20)]) -> Reply[Nothing]:
        """Raise the named error."""
        print("stray output that must not reach the protocol")  # noqa: T201
        error = FAILURES[how]()
        raise error

    @tool(
        server,
        title="Wait long",
        read_only=False,
        destructive=True,
        idempotent=False,
        open_world=True,
        scope="sample:write",
    )
    async def sample_wait_long(ctx: Context[Sample]) -> Reply[Nothing]:
        """Wait until cancelled."""
        sample = state(ctx)
        sample.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            sample.cancelled.set()
            raise
        raise TradingError("unreachable")


if __name__ == "__main__":
    sys.exit(serve(build, sys.argv[1:], "sample"))

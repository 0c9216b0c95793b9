"""A desk's home with a market and a risk room played by the test, for execution as a real process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from trading.adapters import codec
from trading.adapters.approval_signer import create_approval_key
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.market_stream import BookUpdate, MarketStreamPublisher, create_feed_key
from trading.adapters.redis_client import call
from trading.adapters.signing import seal
from trading.adapters.signing_keys import Ed25519Signer, create_key
from trading.adapters.sql.location import LedgerLocation
from trading.adapters.sql.opening import open_reader, open_writer
from trading.adapters.sql.reader import SqlReader
from trading.adapters.sql.writer import SqlLedger
from trading.domain.approvals import (
    APPROVAL_PAYLOAD_TYPE,
    HEARTBEAT_PAYLOAD_TYPE,
    Epoch,
    Heartbeat,
    TradingState,
)
from trading.domain.events import RiskApproved
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed
from trading.ports.ledger import EventDraft, Insert, Unit
from trading.testing.builders import ACCOUNT, BTC_USDT, build_approval, build_approved_order, build_instrument


class Surroundings:
    """Market and risk around an execution process."""

    def __init__(self, settings: DeskSettings, key: Ed25519Signer, redis: Redis, risk: SqlLedger) -> None:
        self.settings = settings
        self.key = key
        self.risk = risk
        self.clock = SystemClock()
        self.epoch = Epoch(risk.generation, 0)
        self.state = TradingState.ACTIVE
        self.beating = True
        self._redis = redis
        self._counter = 0
        self._issued = 0

    async def beat(self) -> None:
        """Send one heartbeat."""
        self._counter += 1
        beat = Heartbeat(
            account_id=ACCOUNT,
            epoch=self.epoch,
            state=self.state,
            counter=self._counter,
            sent_ms=self.clock.now_ms(),
            min_policy_version=1,
        )
        text = seal(codec.canonical(beat), HEARTBEAT_PAYLOAD_TYPE, self.key).to_json()
        await call(self._redis, "XADD", self.settings.key("risk", "heartbeat"), "MAXLEN", "~", 64, "*", "e", text)

    async def trip(self) -> None:
        """Trip the breaker and say so at once."""
        self.epoch = Epoch(self.epoch.generation, self.epoch.counter + 1)
        self.state = TradingState.HALTED
        await self.beat()

    async def issue(self, *, ttl_ms: int = 20_000, **order: Any) -> str:
        """Sign an approval, store it as risk does, and return its id."""
        self._issued += 1
        approval_id = f"approval-{self.epoch.generation}-{self._issued}"
        approval = build_approval(
            key_id=self.key.key_id,
            order=build_approved_order(approval_id=approval_id, **order),
            approval_id=approval_id,
            epoch=self.epoch,
            now_ms=self.clock.now_ms(),
            ttl_ms=ttl_ms,
        )
        text = seal(codec.canonical(approval), APPROVAL_PAYLOAD_TYPE, self.key).to_json()
        row = {
            "approval_id": approval_id,
            "request_id": approval.request_id,
            "principal": "local",
            "decision_id": None,
            "agent_id": approval.agent_id,
            "client_order_id": approval.order.client_order_id,
            "state": "open",
            "expires_ms": approval.expires_ms,
            "envelope": text,
            "created_ms": approval.issued_ms,
        }
        event = EventDraft(RiskApproved(approval=approval, envelope=text))
        await self.risk.commit(Unit(events=(event,), writes=(Insert("approvals", row),)))
        return approval_id

    @asynccontextmanager
    async def execution_ledger(self) -> AsyncGenerator[SqlReader]:
        """Read what execution has written."""
        async with open_reader("execution", LedgerLocation.sqlite(self.settings.desk_home.path / "ledger")) as reader:
            yield reader


def make_home(directory: Path) -> tuple[DeskSettings, Ed25519Signer]:
    """Create the keys that an execution process needs."""
    home = DeskHome(directory).ensure()
    key = create_approval_key(home)
    create_key(
        home.keys("execution") / "checkpoint.key",
        "checkpoint",
        public_path=home.public_keys / "checkpoint-execution.pub",
    )
    create_feed_key(home.keys("market") / "feed.hmac")
    return DeskSettings(home=directory), key


@asynccontextmanager
async def surroundings() -> AsyncGenerator[Surroundings]:
    """Run a market and a risk room on a fresh home."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gx")))
        directory.chmod(0o700)
        settings, key = make_home(directory / "h")
        home = settings.desk_home
        location = LedgerLocation.sqlite(home.path / "ledger")
        risk = await stack.enter_async_context(open_writer("risk", location, clock=SystemClock(), ids=Uuid7Factory()))
        market_redis = await stack.enter_async_context(open_redis(home, settings, "market"))
        risk_redis = await stack.enter_async_context(open_redis(home, settings, "risk"))
        feed_key = create_feed_key(home.keys("market") / "feed.hmac")
        publisher = await stack.enter_async_context(
            MarketStreamPublisher(market_redis, desk=settings.desk, key=feed_key, clock=SystemClock(), feed=Feed.REPLAY)
        )
        around = Surroundings(settings, key, risk_redis, risk)
        task = asyncio.create_task(_live(around, publisher))
        try:
            yield around
        finally:
            task.cancel()
            await asyncio.wait({task})


async def _live(around: Surroundings, publisher: MarketStreamPublisher) -> None:
    """Publish a steady market and risk's heartbeats."""
    instrument = build_instrument(venue="binance")
    publisher.publish_instrument(instrument)
    name = InstrumentId(instrument.venue, BTC_USDT)
    while True:
        now = around.clock.now_ms()
        publisher.publish_book(
            BookUpdate(name, [["60000", "100"], ["59999", "10"]], [["60001", "100"], ["60002", "10"]], now, now)
        )
        if around.beating:
            await around.beat()
        await asyncio.sleep(0.1)

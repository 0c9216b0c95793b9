"""Submit: from the approval id to the durable fill on the paper venue.

The limit loop of a submit verifies one signature with libsodium, makes the claim durable by the bare driver, lets the
bare matching core fill the order, and makes the fill durable, with the same group commit. No gate, no chain, no events.

``order.submit.ccxt``, the ratio to a bare ccxt client, belongs to the release that connects a real venue and is not
measured here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from benchmarks.bare import open_bare_ledger
from benchmarks.measure import Figure, Sample, in_flight, merged, rate_figure
from benchmarks.parts import (
    ACCOUNT,
    CLOCK,
    DATA_ID,
    IDS,
    INSTRUMENT_ID,
    USDT,
    StillMarket,
    beside,
    open_execution_room,
    scratch,
)
from benchmarks.rooms import limit_buys, open_rooms
from mcp_servers.execution.service import ExecutionService
from mcp_servers.execution.walks import Receipt
from mcp_servers.hosting import call
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier, pae, seal
from trading.adapters.sql import LedgerLocation, open_writer
from trading.adapters.venues.paper.accounts import Accounts
from trading.adapters.venues.paper.matching import PaperExchange
from trading.domain.approvals import APPROVAL_PAYLOAD_TYPE, HEARTBEAT_PAYLOAD_TYPE, Approval, Heartbeat, TradingState
from trading.domain.events import RiskApproved
from trading.domain.orders import OrderStatus
from trading.ports.ledger import EventDraft, Insert, Ledger, Unit
from trading.testing.builders import FIRST_EPOCH, build_approval, build_instrument
from trading.testing.keys import make_test_signer

_RISK = make_test_signer("risk")
_COUNT = 3_000
_BATCH = 256
_BATCHES = 8
_FLAT = (1_000, 10_000)


async def run() -> list[Figure]:
    """Measure the execution room."""
    with scratch() as directory:
        return [
            await _single(directory, 64),
            await _single(directory, 256),
            await _batches(directory),
            await _mcp(directory),
        ]


async def _single(directory: Path, width: int) -> Figure:
    """One approval a call, so many calls in flight."""
    limit = await _limit(directory / f"limit-{width}.sqlite", width)
    async with _rooms(directory / f"single-{width}") as (risk, execution):
        sample = await _submit(risk, execution, count=_COUNT, width=width)
        notes = [f"one approval a call, {width} in flight", _cpu(sample, limit)]
    if width == 64:
        notes.append(f"flat: {await _flatness(directory)}")
    name = "order.submit.process" if width == 64 else f"order.submit.process_{width}"
    return rate_figure(name, sample, limit, "; ".join(notes))


async def _flatness(directory: Path) -> str:
    """Return the throughput of the last thousand submits on ledgers of growing size."""
    async with _rooms(directory / "flat") as (risk, execution):
        rates: list[str] = []
        done = 0
        for size in _FLAT:
            if size - 1_000 > done:
                await _submit(risk, execution, count=size - 1_000 - done, width=256)
            sample = await _submit(risk, execution, count=1_000, width=64)
            done = size
            rates.append(f"{sample.rate:,.0f}/s at {size:,} orders")
    return ", ".join(rates)


async def _batches(directory: Path) -> Figure:
    """256 approvals a call, two calls in flight."""
    limit = await _limit(directory / "limit-batch.sqlite", _BATCH)
    async with _rooms(directory / "batch") as (risk, execution):
        ids = await _issue(risk, _BATCH * (_BATCHES + 2))

        async def submit(number: int) -> None:
            _check(await execution.submit(ids[_BATCH * number : _BATCH * (number + 1)]))

        await in_flight(lambda number: submit(_BATCHES + number), count=2, width=2)
        sample = merged([await in_flight(submit, count=_BATCHES, width=2)], each=_BATCH)
    note = f"{_BATCH} approvals a call, 2 in flight, latency of a call; {_cpu(sample, limit)}"
    return rate_figure("order.submit.process_batch", sample, limit, note)


async def _mcp(directory: Path) -> Figure:
    """Batches submitted to the real server in its own process, signed by the real risk server before."""
    async with _rooms(directory / "calls") as (risk, execution):
        ids = await _issue(risk, _BATCH * _BATCHES)

        async def direct(number: int) -> None:
            _check(await execution.submit(ids[_BATCH * number : _BATCH * (number + 1)]))

        limit = merged([await in_flight(direct, count=_BATCHES, width=1)], each=_BATCH)
    filled = 0
    async with open_rooms(directory / "desk", ("market", "risk", "execution")) as rooms:
        samples: list[Sample] = []

        async def submit(number: int) -> None:
            nonlocal filled
            data = await call(rooms.clients["execution"], "execution_submit_orders", approval_ids=signed[number])
            assert data["submitted"] == _BATCH, data["failures"][:1]
            filled += data["states"].get("filled", 0)

        for number in range(_BATCHES):  # signed shortly before, since the market moves and approvals expire
            ask = (await rooms.quote())[1] + 100
            orders = limit_buys(ask, _BATCH, number, time_in_force="ioc")
            signed = {0: await rooms.approve(orders, request_id=f"batch-{number}")}
            samples.append(await in_flight(submit, count=1, width=1))
        sample = merged(samples, each=_BATCH)
    note = (
        f"{_BATCH} approvals a call over a unix socket, one call at a time, latency of a call; {filled} of {sample.n}"
        " filled on the recorded book; limit: in process"
    )
    return rate_figure("order.submit.mcp_batch", sample, limit, note)


@asynccontextmanager
async def _rooms(directory: Path) -> AsyncGenerator[tuple[Ledger, ExecutionService]]:
    """Run execution beside a risk that signs in the benchmark's own process and is heard twice a second."""
    async with (
        open_writer("risk", LedgerLocation.sqlite(directory), clock=CLOCK, ids=IDS) as risk,
        open_execution_room(directory, risk, StillMarket()) as execution,
    ):
        counter = iter(range(1, 1_000_000))

        def beat() -> None:
            execution.learn(heartbeat(next(counter), TradingState.ACTIVE))

        async with beside(beat, every_s=0.5):
            await asyncio.sleep(0)
            yield risk, execution


def heartbeat(counter: int, state: TradingState) -> str:
    """Return a heartbeat of the benchmark's risk, signed now."""
    beat = Heartbeat(
        account_id=ACCOUNT,
        epoch=FIRST_EPOCH,
        state=state,
        counter=counter,
        sent_ms=CLOCK.now_ms(),
        min_policy_version=1,
    )
    return seal(codec.canonical(beat), HEARTBEAT_PAYLOAD_TYPE, _RISK).to_json()


async def _submit(risk: Ledger, execution: ExecutionService, *, count: int, width: int) -> Sample:
    ids = await _issue(risk, count + 200)

    async def submit(number: int) -> None:
        _check(await execution.submit([ids[number]]))

    await in_flight(lambda number: submit(count + number), count=200, width=width)
    return await in_flight(submit, count=count, width=width)


def _check(outcomes: Sequence[object]) -> None:
    for outcome in outcomes:
        assert isinstance(outcome, Receipt), outcome
        assert outcome.order.status is OrderStatus.FILLED, outcome


async def _issue(risk: Ledger, count: int) -> list[str]:
    """Write signed approvals into risk's ledger and return their ids."""
    ids: list[str] = []
    for start in range(0, count, _BATCH):
        approvals = [_approval() for _ in range(min(_BATCH, count - start))]
        envelopes = [_seal(approval) for approval in approvals]
        events = [EventDraft(RiskApproved(approval=a, envelope=e)) for a, e in zip(approvals, envelopes, strict=True)]
        rows = [Insert("approvals", _row(a, e)) for a, e in zip(approvals, envelopes, strict=True)]
        await risk.commit(Unit(events=tuple(events), writes=tuple(rows)))
        ids += [approval.approval_id for approval in approvals]
    return ids


def _approval() -> Approval:
    return build_approval(key_id=_RISK.key_id, approval_id=IDS.new_id(), now_ms=CLOCK.now_ms(), ttl_ms=120_000)


def _seal(approval: Approval) -> str:
    return seal(codec.canonical(approval), APPROVAL_PAYLOAD_TYPE, _RISK).to_json()


def _row(approval: Approval, envelope: str) -> dict[str, object]:
    return {
        "approval_id": approval.approval_id,
        "request_id": approval.request_id,
        "principal": "bench",
        "decision_id": None,
        "agent_id": approval.agent_id,
        "client_order_id": approval.order.client_order_id,
        "state": "open",
        "expires_ms": approval.expires_ms,
        "envelope": envelope,
        "created_ms": approval.issued_ms,
    }


async def _limit(path: Path, width: int) -> Sample:
    """Verify, claim durably, match, and make the fill durable."""
    verifier = Ed25519Verifier.of(_RISK.public_key)
    approvals = [_approval() for _ in range(_COUNT)]
    messages = [pae(APPROVAL_PAYLOAD_TYPE, codec.canonical(approval)) for approval in approvals]
    signatures = [_RISK.sign(message) for message in messages]
    purse = Accounts()
    purse.deposit({USDT: Decimal(10) ** 12})
    exchange = PaperExchange([build_instrument()], ACCOUNT, purse)
    book = StillMarket().book(DATA_ID)
    assert book is not None
    exchange.on_book(replace(book, instrument_id=INSTRUMENT_ID), CLOCK.now_ms())
    tables = {"fates": 2, "orders": 2, "events": 2, "fills": 2}
    async with open_bare_ledger(path, tables) as ledger:

        async def submit(number: int) -> None:
            approval, name = approvals[number], str(number)
            verifier.verify(_RISK.key_id, messages[number], signatures[number])
            row = (name, messages[number].decode())
            await ledger.commit({"fates": [(name, name)], "orders": [row], "events": [row]})
            step = exchange.submit(approval.order, CLOCK.now_ms())
            assert step.trades
            await ledger.commit({"fills": [(name, str(step.trades[0].price))], "events": [(f"{name}-fill", name)]})

        return await in_flight(submit, count=_COUNT, width=width)


def _cpu(sample: Sample, limit: Sample) -> str:
    return f"{sample.cpu}, limit {limit.cpu}"

"""Risk: what a signature costs, from the request to the durable approval.

The limit loop of a sign-off encodes an approval canonically, signs it with libsodium and makes the same number of rows
durable by the bare driver, with the same group commit. No rule, no chain, no idempotence. Where risk signs for 32
orders at once, so does the loop: it hashes the others.
"""

from __future__ import annotations

from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.bare import Rows, open_bare_ledger
from benchmarks.measure import Figure, Sample, in_flight, in_loop, merged, rate_figure
from benchmarks.parts import BTC_USDT, IDS, RiskRoom, open_risk_room, scratch, small_order
from benchmarks.rooms import limit_buys, open_rooms
from benchmarks.voting import open_table, pinned_keys
from mcp_servers.hosting import call
from mcp_servers.risk.rows import exposure_rows
from trading.adapters import codec
from trading.adapters.signing import Ed25519Verifier
from trading.domain.identifiers import DecisionId, RequestId, Symbol
from trading.testing.builders import build_approval
from trading.testing.keys import make_test_signer

_COUNT = 6_000
_BATCH = 256
_BATCHES = 16
_STEP = 32  # orders that risk signs with one signature
_DECISIONS = 600
_TABLES = {"events": 3, "requests": 3, "approvals": 3}


async def run() -> list[Figure]:
    """Measure the risk room."""
    with scratch() as directory:
        return [
            await _single(directory, 64),
            await _single(directory, 256),
            await _batches(directory),
            await _mcp(directory),
            await _with_votes(directory),
            await _exposure(directory),
            await _numbers(directory),
        ]


async def _single(directory: Path, width: int) -> Figure:
    """One order a request, so many requests in flight."""
    limit = await _limit(directory / f"limit-{width}.sqlite", width)
    orders = [small_order(number) for number in range(_COUNT + 500)]
    async with open_risk_room(directory / f"risk-{width}") as room:

        async def ask(number: int) -> None:
            answer = await room.service.request_approval("bench", RequestId(str(number)), (orders[number],))
            assert len(answer.approved) == 1, answer.denied

        await in_flight(lambda number: ask(_COUNT + number), count=500, width=width)  # statements compiled
        sample = await in_flight(ask, count=_COUNT, width=width)
    name = "risk.signoff.process" if width == 64 else f"risk.signoff.process_{width}"
    return rate_figure(name, sample, limit, f"one order a request, {width} in flight; {_cpu(sample, limit)}")


async def _batches(directory: Path) -> Figure:
    """256 orders a request, two requests in flight, so that one is judged while the other reaches the disk."""
    limit = await _limit(directory / "limit-batch.sqlite", _BATCH, together=_STEP)
    async with open_risk_room(directory / "risk-batch") as room:
        sample = await _ask_batches(room, width=2)
    note = f"{_BATCH} orders a request, 2 in flight, latency of a request; {_cpu(sample, limit)}"
    return rate_figure("risk.signoff.process_batch", sample, limit, note)


async def _ask_batches(room: RiskRoom, *, width: int) -> Sample:
    batches = [tuple(small_order(_BATCH * n + m) for m in range(_BATCH)) for n in range(_BATCHES + 2)]

    async def ask(number: int) -> None:
        answer = await room.service.request_approval("bench", RequestId(str(number)), batches[number])
        assert len(answer.approved) == _BATCH, answer.denied[:1]

    await in_flight(lambda number: ask(_BATCHES + number), count=2, width=width)
    return merged([await in_flight(ask, count=_BATCHES, width=width)], each=_BATCH)


async def _mcp(directory: Path) -> Figure:
    """The same batches, asked of the real server in its own process."""
    async with open_risk_room(directory / "risk-calls") as room:
        limit = await _ask_batches(room, width=1)
    async with open_rooms(directory / "desk", ("market", "risk", "execution")) as rooms:
        price = (await rooms.quote())[0]

        async def ask(number: int) -> None:
            orders = limit_buys(price, _BATCH, number)
            data = await call(rooms.clients["risk"], "risk_request_approval", request_id=f"b-{number}", orders=orders)
            assert data["approved"] == _BATCH, data["denials"][:1]

        await in_flight(lambda number: ask(_BATCHES + number), count=2, width=1)
        sample = merged([await in_flight(ask, count=_BATCHES, width=1)], each=_BATCH)
    note = f"{_BATCH} orders a call over a unix socket, one call at a time, latency of a call; limit: in process"
    return rate_figure("risk.signoff.mcp_batch", sample, limit, note)


async def _with_votes(directory: Path) -> Figure:
    """Every request names a decision: proposal, five votes and the leader's signature are verified again."""
    async with (
        open_table(directory / "votes") as table,
        open_risk_room(directory / "votes", coordinator=table.ledger, keys=pinned_keys()) as room,
    ):
        decisions = [(await table.decide())[0].decision_id for _ in range(_DECISIONS)]

        async def ask(number: int) -> None:
            name = decisions[number]
            answer = await room.service.request_approval("bench", RequestId(name), (), DecisionId(name))
            assert len(answer.approved) == 1, answer.denied

        sample = await in_flight(ask, count=_DECISIONS, width=64)
    limit = await _votes_limit(directory / "limit-votes.sqlite")
    note = f"a 5-vote bundle each, 64 in flight; limit: 7 verifications, 1 signature, 4 rows; {_cpu(sample, limit)}"
    return rate_figure("risk.signoff.with_votes", sample, limit, note)


async def _votes_limit(path: Path) -> Sample:
    signer = make_test_signer("risk")
    signed = codec.canonical(build_approval(key_id=signer.key_id))
    signature, verifier = signer.sign(signed), Ed25519Verifier.of(signer.public_key)

    def verify(_: int) -> None:
        for _ in range(7):
            verifier.verify(signer.key_id, signed, signature)

    return await _limit(path, 64, count=_DECISIONS, before=verify, tables={**_TABLES, "decisions": 3})


async def _exposure(directory: Path) -> Figure:
    """200 positions, each with its worst case, and the account's worth."""
    symbols = (BTC_USDT, *(Symbol(f"C{number:03d}/USDT") for number in range(199)))
    amounts = [Decimal(number) / 100 for number in range(1, 201)]
    async with open_risk_room(directory / "exposure", symbols=symbols) as room:

        async def ask(_: int) -> None:
            assert len(exposure_rows(room.service, None).instruments) == len(symbols)

        await ask(0)
        sample = await in_flight(ask, count=200, width=1)
    price = Decimal("60000.5")
    limit = in_loop(lambda _: sum((max(amount, -amount) * price for amount in amounts), Decimal(0)), count=200)
    note = "every instrument's position, promises and worst case, 200 of them; limit: a bare loop over 200 Decimals"
    return rate_figure("risk.exposure", sample, limit, note)


async def _numbers(directory: Path) -> Figure:
    """VaR and ES by four methods, beta, cost of leaving and stress of 200 positions, on the bundled history."""
    symbols = (BTC_USDT, *(Symbol(f"C{number:03d}/USDT") for number in range(199)))
    async with open_risk_room(directory / "numbers", symbols=symbols) as room:
        numbers = room.service.numbers

        async def ask(_: int) -> None:
            report = await numbers.report(room.service.frame())
            assert all(item.tail.var for item in report.tails)

        await ask(0)
        sample = await in_flight(ask, count=50, width=1)
    note = "16 VaR and ES, stress, beta, cost of leaving, 200 positions; 26,000 hourly and 1,000 daily returns"
    return rate_figure("risk.numbers", sample, None, note)


async def _limit(
    path: Path,
    width: int,
    *,
    count: int = _COUNT,
    before: Any = None,
    tables: dict[str, int] | None = None,
    together: int = 1,
) -> Sample:
    """Encode canonically, sign one of every ``together``, and make the same rows durable."""
    signer, tables = make_test_signer("risk"), tables or _TABLES
    approvals = [build_approval(key_id=signer.key_id, approval_id=IDS.new_id()) for _ in range(count)]
    async with open_bare_ledger(path, tables) as ledger:

        async def sign(number: int) -> None:
            if before is not None:
                before(number)
            payload = codec.canonical(approvals[number])
            signature = sha256(payload).digest() * 2 if number % together else signer.sign(payload)
            row = (str(number), payload.decode(), signature.hex())
            rows: dict[str, Rows] = {name: [row] for name in tables}
            await ledger.commit(rows)

        return await in_flight(sign, count=count, width=width)


def _cpu(sample: Sample, limit: Sample) -> str:
    return f"{sample.cpu}, limit {limit.cpu}"

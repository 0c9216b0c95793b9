"""Candles in the ledger's database: room ``market``, one writer, any number of readers.

They are no audit facts: rows are replaced by better ones and old ones are deleted. Rules kept here:

- A candle of which every trade was seen (``complete``, from ``trades``) is replaced by its like alone.
- A candle of the venue's own (``venue``) is replaced by such a one, or by a newer one of the venue's.
- A candle that was cut (not ``complete``) gives way to anything but a cut one with fewer trades.
- Recorded and live candles of one instrument never meet: ``feed`` is part of every key.
- A span says that each interval in it is either stored or had no trade; of a span ``empty`` the venue gave nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

from trading.adapters.sql import candle_statements as statements
from trading.adapters.sql.candle_statements import ROOM, SERIES_KEY
from trading.adapters.sql.location import LedgerLocation
from trading.adapters.sql.reader import RowSource, SqliteSource
from trading.adapters.sql.selects import Query
from trading.adapters.sql.sqlite_tables import MemoryTables, SqliteTables
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle, Feed
from trading.domain.money import plain

#: Rows of one statement: 64 rows of 14 columns stay far below the parameters that either database allows.
_CHUNK: Final = 64

CandleSource = Literal["trades", "venue"]
SpanSource = Literal["trades", "venue", "empty"]


class Series(NamedTuple):
    """Candles of one length of one instrument, live or recorded."""

    feed: Feed
    instrument_id: InstrumentId
    interval_ms: int

    def values(self) -> dict[str, object]:
        """Return the columns of the key that are the series'."""
        return dict(zip(SERIES_KEY, (self.feed.value, *self.instrument_id, self.interval_ms), strict=True))


@dataclass(frozen=True, slots=True)
class StoredCandle:
    """A closed candle as it is kept.

    Attributes:
        complete: False when only a part of its interval was seen.
        source: ``trades`` built it here, or the ``venue`` gave it.
    """

    candle: Candle
    complete: bool
    source: CandleSource


class StoredSpan(NamedTuple):
    """A stretch that is known, its end excluded; ``written_ms`` is when that was learned."""

    from_ms: int
    until_ms: int
    source: SpanSource
    written_ms: int


class Sink(Protocol):
    """A database that can be written."""

    async def apply(self, steps: Sequence[tuple[str, Sequence[object]]]) -> None:
        """Do statements with their parameters in one transaction; raises LedgerUnavailable or LeaseLost."""
        ...

    async def close(self) -> None:
        """Let go of the database."""
        ...


class CandleTables:
    """Reads and writes candles; made by ``open_candles`` or ``open_candles_in_memory``.

    Args:
        source: what is read.
        sink: what is written; None for a reader.
    """

    def __init__(self, source: RowSource, sink: Sink | None) -> None:
        self._source = source
        self._sink = sink

    @property
    def writable(self) -> bool:
        """Whether this is the one writer."""
        return self._sink is not None

    async def read(self, series: Series, from_ms: int, until_ms: int) -> list[StoredCandle]:
        """Return the candles that open within [from_ms, until_ms), oldest first; raises LedgerUnavailable."""
        query = statements.select_candles(postgres=self._source.postgres)
        rows = await self._fetch(query, {**series.values(), "from": from_ms, "until": until_ms})
        return [_candle(series, row) for row in rows]

    async def spans(self, series: Series) -> list[StoredSpan]:
        """Return what is known of a series, by start; spans may overlap; raises LedgerUnavailable."""
        rows = await self._fetch(statements.select_spans(postgres=self._source.postgres), series.values())
        return [StoredSpan(int(row[0]), int(row[1]), row[2], int(row[3])) for row in rows]

    async def write(
        self, series: Series, candles: Sequence[StoredCandle], spans: Sequence[StoredSpan], *, now_ms: int
    ) -> None:
        """Keep closed candles and spans of a series in one transaction, by the rules of this module.

        Spans of one source that meet are kept as one.

        Raises:
            LedgerUnavailable: it is unknown whether they are kept; doing it again is harmless.
            LeaseLost: another process writes now.
        """
        steps = [self._upsert("candles", [_row(series, item, now_ms) for item in part]) for part in _parts(candles)]
        if spans:
            old = await self.spans(series)
            for source in {span.source for span in spans}:
                steps += self._replace_spans(
                    series, [o for o in old if o.source == source], [s for s in spans if s.source == source]
                )
        if steps:
            await self._write(steps)

    async def forget(self, series: Series, before_ms: int) -> None:
        """Delete the candles that open before a moment, and what is known of that time; raises as ``write`` does."""
        values = {**series.values(), "until": before_ms}
        query = statements.delete_candles(postgres=self._postgres)
        steps: list[tuple[str, Sequence[object]]] = [(query.text, query.parameters(values))]
        for span in await self.spans(series):
            if span.from_ms < before_ms:
                steps.append(self._delete_spans(series, span.source, span.from_ms, span.from_ms))
                if span.until_ms > before_ms:
                    steps.append(self._upsert("candle_spans", [_span_row(series, span._replace(from_ms=before_ms))]))
        await self._write(steps)

    async def close(self) -> None:
        """Let go of the database."""
        if self._sink is not None:
            await self._sink.close()
        await self._source.close()

    @property
    def _postgres(self) -> bool:
        return self._source.postgres

    async def _fetch(self, query: Query, values: dict[str, object]) -> list[tuple[Any, ...]]:
        return await self._source.fetch(query.text, query.parameters(values))

    async def _write(self, steps: Sequence[tuple[str, Sequence[object]]]) -> None:
        assert self._sink is not None, "only the writer writes"
        await self._sink.apply(steps)

    def _upsert(self, table: str, rows: Sequence[dict[str, object]]) -> tuple[str, Sequence[object]]:
        query = statements.upsert_rows(table, len(rows), postgres=self._postgres)
        values = {f"v{index}_{name}": value for index, row in enumerate(rows) for name, value in row.items()}
        return query.text, query.parameters(values)

    def _replace_spans(
        self, series: Series, old: Sequence[StoredSpan], new: Sequence[StoredSpan]
    ) -> list[tuple[str, Sequence[object]]]:
        """Join new spans with the old ones that they touch; ``empty`` ones keep their own age and are not joined."""
        steps: list[tuple[str, Sequence[object]]] = []
        for span in new:
            met = [o for o in old if o.from_ms <= span.until_ms and span.from_ms <= o.until_ms]
            if span.source == "empty":
                met = [o for o in met if span.from_ms <= o.from_ms and o.until_ms <= span.until_ms]
            whole = span._replace(
                from_ms=min(span.from_ms, *(o.from_ms for o in met)) if met else span.from_ms,
                until_ms=max(span.until_ms, *(o.until_ms for o in met)) if met else span.until_ms,
            )
            steps.append(self._delete_spans(series, span.source, whole.from_ms, whole.until_ms))
            steps.append(self._upsert("candle_spans", [_span_row(series, whole)]))
            old = [*(o for o in old if o not in met), whole]
        return steps

    def _delete_spans(self, series: Series, source: str, first: int, last: int) -> tuple[str, Sequence[object]]:
        query = statements.delete_spans(postgres=self._postgres)
        return query.text, query.parameters({**series.values(), "of": source, "first": first, "last": last})


@asynccontextmanager
async def open_candles(location: LedgerLocation, *, write: bool) -> AsyncGenerator[CandleTables]:
    """Open the room's candles where the desk keeps its ledgers.

    Args:
        write: be the one writer: take the lock and bring the tables up to date. A reader may come first; what does not
            exist yet reads as empty.

    Raises:
        ConfigurationError: LEDGER_IN_USE, LEDGER_TOO_NEW or LEDGER_NOT_PROVISIONED.
        LedgerUnavailable: the database does not answer.
    """
    tables = CandleTables(_source(location), await _open_sink(location) if write else None)
    try:
        yield tables
    finally:
        await tables.close()


@asynccontextmanager
async def open_candles_in_memory(*, pages_max: int = 16_384) -> AsyncGenerator[CandleTables]:
    """Open candles that are gone with the block, for a process that may not write the desk's.

    Args:
        pages_max: of 4 KiB (by default 64 MiB, some 400,000 candles); when they are full everything is forgotten.
    """
    memory = MemoryTables(ROOM, pages_max=pages_max)
    tables = CandleTables(memory, memory)
    try:
        yield tables
    finally:
        await tables.close()


def _source(location: LedgerLocation) -> RowSource:
    if location.url is None:
        return SqliteSource(location.file(ROOM))
    from trading.adapters.sql.postgres_store import PostgresSource  # asyncpg is an extra

    return PostgresSource(ROOM, location.url)


async def _open_sink(location: LedgerLocation) -> Sink:
    from trading.adapters.sql.migrate import migrate_postgres, migrate_sqlite

    if location.url is None:
        sink = SqliteTables(location.file(ROOM))
        try:
            sink.lock()
            await migrate_sqlite(ROOM, location.file(ROOM))
        except BaseException:
            await sink.close()
            raise
        return sink
    from trading.adapters.sql.postgres_store import PostgresStore

    store = PostgresStore(ROOM, location.url)
    try:
        await store.acquire()
        await migrate_postgres(ROOM, location.url)
    except BaseException:
        await store.close()
        raise
    return store


def _parts(candles: Sequence[StoredCandle]) -> list[Sequence[StoredCandle]]:
    """Split into powers of two, so that few distinct statements are prepared."""
    parts: list[Sequence[StoredCandle]] = []
    start = 0
    while start < len(candles):
        size = min(_CHUNK, 1 << (len(candles) - start).bit_length() - 1)
        parts.append(candles[start : start + size])
        start += size
    return parts


def _row(series: Series, item: StoredCandle, now_ms: int) -> dict[str, object]:
    candle = item.candle
    return {
        **series.values(),
        "open_ts_ms": candle.open_ts_ms,
        **{name: plain(getattr(candle, name)) for name in ("open", "high", "low", "close", "volume")},
        "trades": candle.trades,
        "complete": int(item.complete),
        "source": item.source,
        "written_ms": now_ms,
    }


def _span_row(series: Series, span: StoredSpan) -> dict[str, object]:
    return {**series.values(), **span._asdict()}


def _candle(series: Series, row: tuple[Any, ...]) -> StoredCandle:
    open_ts_ms, *prices, trades, complete, source = row
    opened, high, low, close, volume = map(Decimal, prices)
    candle = Candle(
        series.instrument_id, series.interval_ms, int(open_ts_ms), opened, high, low, close, volume, int(trades),
        closed=True,
    )  # fmt: skip
    return StoredCandle(candle, bool(complete), cast("CandleSource", source))

"""Tables of recorded candles: CSV, gzipped or not, one instrument each.

The first line names the columns ``ts`` or ``timestamp``, ``open``, ``high``, ``low``, ``close`` and ``volume``, in any
order. Times are the opening times of bars, in milliseconds since the epoch or as ISO text, which is UTC without an
offset; a bar starts at a whole multiple of its length.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

from mcp_servers.market.candles import TIMEFRAMES
from mcp_servers.market.sources.replay import bundled_instruments
from trading.adapters.codec import decode
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Candle
from trading.domain.money import ZERO, parse_decimal

#: Rules of instruments that do not ship with the package, in a file of this name beside the recording.
RULES_FILE: Final = "instruments.json"
_TIME_COLUMNS: Final = ("ts", "timestamp")
_COLUMNS: Final = ("open", "high", "low", "close", "volume")
_MAX_BYTES: Final = 256 * 2**20  # of one decompressed recording
_SAMPLE: Final = 1_000  # lines from which the bars' length is told
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SUFFIXES: Final = (".csv", ".csv.gz")


@dataclass(frozen=True)
class OhlcvRecording:
    """The bars of one instrument.

    Attributes:
        interval_ms: length of a bar.
        begin_ms, end_ms: start of the first bar and end of the last one, milliseconds since the epoch.
        columns: where time, open, high, low, close and volume stand in a line.
        lines: the text below the header.
    """

    name: str
    instrument: Instrument
    interval_ms: int
    begin_ms: int
    end_ms: int
    columns: tuple[int, ...]
    lines: tuple[str, ...]

    def bars(self) -> Iterator[Candle | None]:
        """Yield the bars in order of time; None for a line that is left out, being malformed or out of order."""
        newest = -1
        for line in self.lines:
            candle = _read_candle(self.instrument.id, self.interval_ms, self.columns, line)
            if candle is not None and newest < candle.open_ts_ms < self.end_ms:
                newest = candle.open_ts_ms
                yield candle
            else:
                yield None


def is_ohlcv(path: Path | None) -> bool:
    """Return whether a configured recording holds candles: a CSV file, or a directory of them."""
    return path is not None and (path.name.endswith(_SUFFIXES) or path.is_dir())


def load_ohlcv(path: Path, *, symbols: Sequence[str], venue: str) -> tuple[OhlcvRecording, ...]:
    """Read recorded candles into memory, one recording per symbol.

    Args:
        path: a CSV file, gzipped or not, of one symbol; or a directory with ``BTC-USDT.csv`` or ``BTC-USDT.csv.gz``
            for each symbol.
        symbols: what the desk trades.
        venue: whose prices they are.

    Raises:
        ConfigurationError: a file is missing, cannot be read or is no such table, or an instrument's rules are unknown.
    """
    if not path.is_dir() and len(symbols) != 1:
        raise ConfigurationError(
            "a file of candles holds one symbol", suggestion="set one symbol, or name a directory with a file for each"
        )
    rules = {item.id: item for item in (*_rules_beside(path), *bundled_instruments())}
    found: list[OhlcvRecording] = []
    for symbol in symbols:
        instrument = rules.get(InstrumentId(Venue(venue), Symbol(symbol)))
        if instrument is None:
            raise ConfigurationError(
                f"no rules of {symbol} on {venue} ship with the desk", suggestion=f"put {RULES_FILE} beside the candles"
            )
        found.append(_load(_file_of(path, symbol), instrument))
    return tuple(found)


def _file_of(path: Path, symbol: str) -> Path:
    if not path.is_dir():
        return path
    stem = symbol.replace("/", "-")
    for suffix in _SUFFIXES:
        if (file := path / f"{stem}{suffix}").is_file():
            return file
    raise ConfigurationError(f"there are no candles of {symbol}", suggestion=f"add {stem}.csv.gz to the directory")


def _rules_beside(path: Path) -> tuple[Instrument, ...]:
    file = (path if path.is_dir() else path.parent) / RULES_FILE
    try:
        return decode(tuple[Instrument, ...], file.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, InvalidValue) as error:
        raise ConfigurationError(f"{RULES_FILE} beside the candles cannot be read") from error


def _load(path: Path, instrument: Instrument) -> OhlcvRecording:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        header, *lines = data.decode("utf-8-sig").splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigurationError(f"{path.name} cannot be read, or is no table of candles") from error
    if len(data) > _MAX_BYTES:
        raise ConfigurationError(f"{path.name} is larger than {_MAX_BYTES // 2**20} MiB", suggestion="split it")
    names = [name.strip().lower() for name in header.split(",")]
    try:
        columns = (
            next(names.index(name) for name in _TIME_COLUMNS if name in names),
            *(names.index(name) for name in _COLUMNS),
        )
    except (StopIteration, ValueError) as error:
        wanted = ", ".join(("ts or timestamp", *_COLUMNS))
        raise ConfigurationError(
            f"{path.name} lacks a column", suggestion=f"its first line must name {wanted}"
        ) from error
    interval = _interval(path.name, columns[0], lines)

    def first(candidates: Iterable[str]) -> Candle | None:
        found = (_read_candle(instrument.id, interval, columns, line) for line in candidates)
        return next((candle for candle in found if candle is not None), None)

    begin, end = first(lines), first(reversed(lines))
    if begin is None or end is None:
        raise ConfigurationError(f"{path.name} holds no sound candle", suggestion="see what its lines should look like")
    begin_ms = begin.open_ts_ms
    end_ms = max(begin_ms, end.open_ts_ms) + interval
    return OhlcvRecording(path.name, instrument, interval, begin_ms, end_ms, columns, tuple(lines))


def _interval(name: str, column: int, lines: Sequence[str]) -> int:
    """Return the bars' length: the shortest distance between neighbours."""
    starts: list[int] = []
    for line in lines[:_SAMPLE]:
        try:
            starts.append(_read_time(line.split(",")[column]))
        except (ValueError, IndexError):
            continue
    steps = [later - earlier for earlier, later in pairwise(starts) if later > earlier]
    if not steps or min(steps) not in TIMEFRAMES.values():
        raise ConfigurationError(
            f"the bars of {name} have no known length", suggestion=f"one of {', '.join(TIMEFRAMES)}, two bars at least"
        )
    return min(steps)


def _read_time(text: str) -> int:
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) <= 15:
        return int(text)
    moment = datetime.fromisoformat(text)
    since = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1_000 + since.microseconds // 1_000


def _read_candle(instrument_id: InstrumentId, interval_ms: int, columns: tuple[int, ...], line: str) -> Candle | None:
    """Return a line's bar, None when it cannot be one."""
    fields = line.split(",")
    try:
        opened = _read_time(fields[columns[0]])
        first, high, low, close, volume = (parse_decimal(fields[column].strip()) for column in columns[1:])
    except (ValueError, IndexError):  # InvalidValue is a ValueError
        return None
    sane = ZERO < low <= min(first, close) and max(first, close) <= high and volume >= ZERO
    if not sane or opened < 0 or opened % interval_ms:
        return None
    return Candle(instrument_id, interval_ms, opened, first, high, low, close, volume, trades=0, closed=True)

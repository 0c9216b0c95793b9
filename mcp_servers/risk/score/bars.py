"""Hourly bars on a whole grid: an hour that nobody recorded is a row of NaN, so that positions are times."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from trading.domain.errors import ConfigurationError

Column = npt.NDArray[np.float64]

HOUR_MS: Final = 3_600_000
BUNDLED: Final = "bundled"
_FILE: Final = re.compile(r"ohlcv_1h_([A-Z0-9]+?)(?:USDT|USDC|USD)_.*\.csv(?:\.gz)?")


@dataclass(frozen=True, slots=True)
class Bars:
    """Closed hourly bars of one instrument, all arrays of shape (n,).

    Attributes:
        asset: what they price, such as BTC.
        first_hour: hours since the epoch at which the first bar opened; the others follow without a gap.
        close: price at the end of the hour.
        low, high, volume: of the hour; all NaN where only closes are known.
    """

    asset: str
    first_hour: int
    close: Column
    low: Column
    high: Column
    volume: Column

    @property
    def hours(self) -> npt.NDArray[np.int64]:
        """Opening hours since the epoch, shape (n,)."""
        return np.arange(self.first_hour, self.first_hour + len(self.close), dtype=np.int64)

    @property
    def whole(self) -> bool:
        """Whether lows, highs and volumes are known besides closes."""
        return bool(np.isfinite(self.low).any())

    def until(self, count: int) -> Bars:
        """Return the first ``count`` bars."""
        return Bars(
            self.asset,
            self.first_hour,
            self.close[:count],
            self.low[:count],
            self.high[:count],
            self.volume[:count],
        )


def on_grid(asset: str, hours: Sequence[int] | npt.NDArray[np.int64], columns: Column) -> Bars:
    """Return bars with missing hours as NaN.

    Args:
        asset: what they price.
        hours: shape (n,), opening hours since the epoch, rising, n >= 1.
        columns: shape (n, 4): close, low, high, volume; NaN where not known.

    Raises:
        ValueError: hours do not rise, or a price is not positive.
    """
    places = np.asarray(hours, dtype=np.int64)
    if len(places) == 0 or (np.diff(places) <= 0).any():
        raise ValueError("hours must rise, and there must be one")
    if (columns[:, :3] <= 0).any() or np.isnan(columns[:, 0]).any():
        raise ValueError("prices are positive")
    first = int(places[0])
    grid = np.full((int(places[-1]) - first + 1, 4), np.nan)
    grid[places - first] = columns
    close, low, high, volume = np.ascontiguousarray(grid.T)
    return Bars(asset, first, close, low, high, volume)


def read_bars(data: str) -> list[Bars]:
    """Return the bars of a folder of recordings, or those that ship with the room.

    Args:
        data: ``bundled`` (closes of 2019 to 2021), or a folder with files ``ohlcv_1h_<ASSET>USDT_<years>.csv.gz`` whose
            columns are ts (opening, epoch ms), open, high, low, close, volume.

    Raises:
        ConfigurationError: the folder has no such file, or one cannot be read.
    """
    if data == BUNDLED:
        return _bundled()
    folder = Path(data)
    found = [(match[1], path) for path in sorted(folder.glob("*")) if (match := _FILE.fullmatch(path.name))]
    if not found:
        raise ConfigurationError(
            f"no hourly recordings in {folder}",
            suggestion="name a folder with files such as ohlcv_1h_BTCUSDT_2019-2021.csv.gz, or bundled",
        )
    return [_read(asset, path) for asset, path in found]


def digest_of(bars: Sequence[Bars]) -> str:
    """Return SHA-256 of everything that training sees, 64 hexadecimal digits."""
    seen = hashlib.sha256()
    for item in bars:
        seen.update(f"{item.asset} {item.first_hour} {len(item.close)}\n".encode())
        for column in (item.close, item.low, item.high, item.volume):
            seen.update(np.ascontiguousarray(column, dtype="<f8").tobytes())
    return seen.hexdigest()


def _bundled() -> list[Bars]:
    from mcp_servers.risk.numbers.bundled import bundled

    closes = bundled()
    unknown = np.full(len(closes.open_hours), np.nan)
    return [
        on_grid(asset, closes.open_hours, np.column_stack((closes.levels[:, number], unknown, unknown, unknown)))
        for number, asset in enumerate(closes.assets)
    ]


def _read(asset: str, path: Path) -> Bars:
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = np.loadtxt(text.decode().splitlines()[1:], delimiter=",", ndmin=2, dtype=np.float64)
        return on_grid(asset, (rows[:, 0] // HOUR_MS).astype(np.int64), rows[:, [4, 3, 2, 5]])
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise ConfigurationError(f"{path} is not a recording of hourly bars ({error})") from error

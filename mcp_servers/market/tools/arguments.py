"""The kinds of arguments that several market tools take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

#: Registers a read-only tool: ``@read(title="Get tickers")``.
Register = Callable[..., Callable[[Any], Any]]

SymbolText = Annotated[str, Field(min_length=1, max_length=41)]
VenueText = Annotated[str | None, Field(max_length=64)]
SymbolTexts = Annotated[list[SymbolText], Field(min_length=1, max_length=20)]
Timeframe = Literal["1s", "5s", "15s", "1m", "5m", "15m", "1h", "4h", "1d"]

"""The indicators that may be asked for: names, parameters with bounds, definitions, and how many bars they need.

An indicator is written ``name:parameter:parameter``, for example ``rsi:14`` or ``macd:12:26:9``; parameters that are
left out have their customary values. How each is computed is in :mod:`trading.strategy.series`.

Two numbers are stated for each. ``needed`` closed bars give one whole row of values; before that they are None. What
smooths recursively keeps some of its beginning: after ``settled`` bars that part weighs less than a millionth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, log
from typing import Final

from mcp_servers.tool_errors import did_you_mean
from trading.domain.errors import InvalidValue
from trading.domain.money import ONE, is_multiple, parse_decimal, plain
from trading.strategy import series
from trading.strategy.series import Bars, Series

#: Indicators of one question.
INDICATORS_MAX: Final = 8
_MAX_PERIOD: Final = 400
_MAX_SMOOTHING: Final = 50
_BEGINNING_WEIGHS: Final = 1e-6
_WRITTEN: Final = re.compile(r"([a-z_]{1,20})(?:[:(]([0-9., :]{0,40})\)?)?")
_EXAMPLE: Final = "write name:parameters, for example rsi:14 or macd:12:26:9"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number of an indicator; ``step`` 1 makes it a whole one."""

    name: str
    default: Decimal
    least: Decimal
    most: Decimal
    step: Decimal = ONE

    def read(self, text: str) -> Decimal:
        """Return the number that a caller wrote.

        Raises:
            InvalidValue: code INVALID_INDICATOR: no number, out of bounds or too finely divided.
        """
        try:
            value = parse_decimal(text.strip())
        except InvalidValue:
            value = None
        if value is None or not self.least <= value <= self.most or not is_multiple(value, self.step):
            kind = "a whole number" if self.step == ONE else f"a multiple of {plain(self.step)}"
            raise InvalidValue(
                f"{self.name} must be {kind} from {plain(self.least)} to {plain(self.most)}",
                code="INVALID_INDICATOR",
                suggestion=_EXAMPLE,
            )
        return value


@dataclass(frozen=True, slots=True)
class Definition:
    """One kind of indicator.

    Attributes:
        text: what distinguishes it from other things of that name.
        compute: the lines by name, of bars, the whole-numbered parameters and the width (0 without one).
        needed: bars for one whole row, of the whole-numbered parameters.
        settling: bars beyond ``needed``; None when the beginning never loses its weight.
    """

    name: str
    parameters: tuple[Parameter, ...]
    text: str
    compute: Callable[[Bars, Sequence[int], float], Mapping[str, Series]]
    needed: Callable[[Sequence[int]], int]
    settling: Callable[[Sequence[int]], int] | None


@dataclass(frozen=True, slots=True)
class Indicator:
    """An indicator with its parameters, ready to be computed."""

    definition: Definition
    values: tuple[Decimal, ...]

    @property
    def name(self) -> str:
        """How it is written, every parameter named."""
        return ":".join((self.definition.name, *(plain(value) for value in self.values)))

    @property
    def needed(self) -> int:
        """Closed bars for one whole row of values."""
        return self.definition.needed(self._periods())

    @property
    def settled(self) -> int | None:
        """Closed bars after which the beginning weighs less than a millionth; None: it always counts."""
        settling = self.definition.settling
        return None if settling is None else self.needed + settling(self._periods())

    def compute(self, bars: Bars) -> Mapping[str, Series]:
        """Return its lines, each with one value per bar.

        Raises:
            InvalidValue: code NOT_ENOUGH_HISTORY.
        """
        if len(bars) < self.needed:
            raise InvalidValue(
                f"{self.name} needs {self.needed} closed bars; there are {len(bars)}",
                code="NOT_ENOUGH_HISTORY",
                suggestion="choose smaller parameters or a shorter timeframe, or ask again when there are more bars",
            )
        width = next((float(value) for kind, value in self._given() if kind.step != ONE), 0.0)
        return self.definition.compute(bars, self._periods(), width)

    def _periods(self) -> list[int]:
        return [int(value) for kind, value in self._given() if kind.step == ONE]

    def _given(self) -> list[tuple[Parameter, Decimal]]:
        return list(zip(self.definition.parameters, self.values, strict=True))


def parse_indicators(texts: Sequence[str]) -> tuple[Indicator, ...]:
    """Return the indicators that a caller wrote, each once, in the order of the texts.

    Raises:
        InvalidValue: code INVALID_INDICATOR: an unknown name (``allowed`` has the nearest), parameters that are not
            possible, none at all or too many.
    """
    if not 1 <= len(texts) <= INDICATORS_MAX:
        raise InvalidValue(f"name 1 to {INDICATORS_MAX} indicators", code="INVALID_INDICATOR", suggestion=_EXAMPLE)
    return tuple({found.name: found for found in map(parse_indicator, texts)}.values())


def parse_indicator(text: str) -> Indicator:
    """Return the indicator that a caller wrote; raises as :func:`parse_indicators` does."""
    written = _WRITTEN.fullmatch(text.strip().lower()) if len(text) <= 64 else None
    name = written[1] if written is not None else text[:40].partition(":")[0]
    definition = DEFINITIONS.get(_ALIASES.get(name, name))
    if definition is None:
        near = did_you_mean(name, (*DEFINITIONS, *_ALIASES))
        raise InvalidValue(
            "there is no such indicator",
            code="INVALID_INDICATOR",
            suggestion=f"did you mean {near[0]}?" if near else _EXAMPLE,
            allowed=near or tuple(DEFINITIONS),
        )
    parameters = definition.parameters
    parts = re.split(r"[:,]", written[2]) if written is not None and written[2] is not None else []
    if written is None or len(parts) > len(parameters):
        names = ":".join((definition.name, *(parameter.name for parameter in parameters)))
        raise InvalidValue("the indicator cannot be read", code="INVALID_INDICATOR", suggestion=f"write {names}")
    given = [parameter.read(part) for parameter, part in zip(parameters, parts, strict=False)]
    found = Indicator(definition, (*given, *(parameter.default for parameter in parameters[len(given) :])))
    if definition.name == "macd" and found.values[0] >= found.values[1]:
        raise InvalidValue("fast must be smaller than slow", code="INVALID_INDICATOR", suggestion="write macd:12:26:9")
    return found


def _period(default: int, name: str = "period", *, least: int = 2, most: int = _MAX_PERIOD) -> Parameter:
    return Parameter(name, Decimal(default), Decimal(least), Decimal(most))


def _smoothing(name: str) -> Parameter:
    return _period(3, name, least=1, most=_MAX_SMOOTHING)


def _width(default: str) -> Parameter:
    return Parameter("width", Decimal(default), Decimal("0.1"), Decimal(10), Decimal("0.01"))


def _fading(share: float) -> int:
    """Return after how many bars, each of which leaves ``share`` of what was before, it weighs a millionth."""
    return ceil(log(_BEGINNING_WEIGHS) / log(share))


def _ema_settling(period: int) -> int:
    return _fading((period - 1) / (period + 1))


def _wilder_settling(period: int) -> int:
    return _fading((period - 1) / period)


def _nothing(_: Sequence[int]) -> int:
    return 0


def _one(values: Series) -> Mapping[str, Series]:
    return {"value": values}


def _by_name(definitions: Iterable[Definition]) -> dict[str, Definition]:
    return {definition.name: definition for definition in definitions}


#: Every indicator by its name.
DEFINITIONS: Final[Mapping[str, Definition]] = _by_name(
    (
        Definition(
            "sma", (_period(20),), "simple mean of the close",
            lambda bars, n, _: _one(series.sma(bars.close, n[0])), lambda n: n[0], _nothing,
        ),
        Definition(
            "ema", (_period(20),), "of the close, weight 2/(period+1), begun with the simple mean",
            lambda bars, n, _: _one(series.ema(bars.close, n[0])), lambda n: n[0], lambda n: _ema_settling(n[0]),
        ),
        Definition(
            "rsi", (_period(14),), "Wilder's smoothing of gains and losses, begun with their simple means",
            lambda bars, n, _: _one(series.rsi(bars.close, n[0])), lambda n: n[0] + 1, lambda n: _wilder_settling(n[0]),
        ),
        Definition(
            "macd", (_period(12, "fast"), _period(26, "slow"), _period(9, "signal")),
            "EMAs of the close, each begun with its own simple mean; signal is an EMA of the difference",
            lambda bars, n, _: series.macd(bars.close, *n)._asdict(), lambda n: n[1] + n[2] - 1,
            lambda n: _ema_settling(n[1]) + _ema_settling(n[2]),
        ),
        Definition(
            "bollinger", (_period(20), _width("2")), "simple mean of the close ± width population standard deviations",
            lambda bars, n, k: series.bollinger(bars.close, n[0], k)._asdict(), lambda n: n[0], _nothing,
        ),
        Definition(
            "atr", (_period(14),), "Wilder's smoothing of true ranges from the 2nd bar on, begun with the simple mean",
            lambda bars, n, _: _one(series.atr(bars, n[0])), lambda n: n[0] + 1, lambda n: _wilder_settling(n[0]),
        ),
        Definition(
            "adx", (_period(14),), "Wilder's smoothing, each part begun with its simple mean; 0 without movement",
            lambda bars, n, _: series.adx(bars, n[0])._asdict(), lambda n: 2 * n[0],
            lambda n: 2 * _wilder_settling(n[0]),
        ),
        Definition(
            "stochastic", (_period(14), _smoothing("smooth"), _smoothing("signal")),
            "close within the range of period bars; k its simple mean over smooth bars, d that of k over signal",
            lambda bars, n, _: series.stochastic(bars, *n)._asdict(), lambda n: sum(n) - 2, _nothing,
        ),
        Definition(
            "obv", (), "base volume, added up from the first bar read: only its changes mean something",
            lambda bars, _, __: _one(series.obv(bars)), lambda _: 1, None,
        ),
        Definition(
            "vwap", (_period(24),), "typical price weighted by volume over period bars, rolling, no session",
            lambda bars, n, _: _one(series.vwap(bars, n[0])), lambda n: n[0], _nothing,
        ),
        Definition(
            "donchian", (_period(20),), "lowest low and highest high, the last bar included",
            lambda bars, n, _: series.donchian(bars, n[0])._asdict(), lambda n: n[0], _nothing,
        ),
        Definition(
            "keltner", (_period(20), _period(10, "atr_period"), _width("2")), "EMA of the close ± width Wilder's ATR",
            lambda bars, n, k: series.keltner(bars, n[0], n[1], k)._asdict(), lambda n: max(n[0], n[1] + 1),
            lambda n: max(_ema_settling(n[0]), _wilder_settling(n[1])),
        ),
        Definition(
            "roc", (_period(10, least=1),), "change of the close over period bars in percent",
            lambda bars, n, _: _one(series.roc(bars.close, n[0])), lambda n: n[0] + 1, _nothing,
        ),
        Definition(
            "cci", (_period(20),), "of the typical price, mean deviation from its simple mean, factor 0.015",
            lambda bars, n, _: _one(series.cci(bars, n[0])), lambda n: n[0], _nothing,
        ),
        Definition(
            "williams_r", (_period(14),), "close within the range of period bars, from -100 to 0",
            lambda bars, n, _: _one(series.williams_r(bars, n[0])), lambda n: n[0], _nothing,
        ),
        Definition(
            "supertrend", (_period(10), _width("3")),
            "Wilder's ATR around the middle of high and low; direction 1 up, -1 down, carried from the first bar read",
            lambda bars, n, k: series.supertrend(bars, n[0], k)._asdict(), lambda n: n[0] + 1, None,
        ),
    )
)  # fmt: skip
_ALIASES: Final[Mapping[str, str]] = {
    "bb": "bollinger",
    "bbands": "bollinger",
    "stoch": "stochastic",
    "willr": "williams_r",
    "williams": "williams_r",
}

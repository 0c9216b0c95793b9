"""The chart as a PNG, for every host that can show an image.

Blue and vermilion tell rise and fall apart for every kind of colour vision, and so does the fill: a rising candle is
hollow. Buys point up, sells point down. Everything that changes how the picture is to be read is written on it.

Rules kept here:

- matplotlib is imported by the first picture, not by the server's start.
- One thread draws, one picture at a time; few may wait, none for ever. The event loop goes on meanwhile.
- No text is read as markup, and only printable ASCII is drawn: nothing from outside reaches the font machinery.
"""

# matplotlib describes its keyword arguments as unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from mcp_servers.market.chart.drawing import Drawing, OrderMark
from trading.domain.errors import Unavailable
from trading.domain.market_data import Candle, Side
from trading.domain.money import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Candles on one picture: two pixels each at least.
MAX_CANDLES: Final = 300
#: Size in pixels, and the most bytes that are sent.
WIDTH, HEIGHT, MAX_BYTES = 900, 500, 150_000
_DPI: Final = 100
_WAITING: Final = 4
_BUDGET_S: Final = 10.0

UP, DOWN, BUY, SELL = "#0072b2", "#d55e00", "#00795c", "#a3266e"
_INK, _DIM, _GRID, _PAPER = "#1b1f24", "#5b6470", "#e3e7ec", "#ffffff"
_AVERAGES: Final = (("#3d3d3d", "-"), ("#7a4cc2", "--"), ("#8a6d00", "-."))
_STEPS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
_DAY_S: Final = 86_400
_EDGE_LABELS: Final = 4
_BRIDGED: Final = 2.5  # candles: one without a trade does not cut an average
_LABEL_ROOM: Final = 0.045  # height of a price label, as a part of the price axis


class Painter:
    """Draws pictures, one after another, in a thread of its own that starts with the first.

    Args:
        budget_s: the longest that one caller waits; the first picture of a process takes a second or two.
    """

    def __init__(self, *, budget_s: float = _BUDGET_S) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chart")
        self._budget_s = budget_s
        self._waiting = 0

    async def paint(self, drawing: Drawing) -> bytes:
        """Return a PNG of 900 x 500 pixels and at most 150 kB.

        Raises:
            Unavailable: code CHART_BUSY: too many wait, it took too long, or it would be too large.
        """
        if self._waiting >= _WAITING:
            raise Unavailable("too many pictures are being drawn", code="CHART_BUSY")
        self._waiting += 1
        work = self._pool.submit(paint, drawing)
        # Counted until the thread is done with it, which may be after its caller has gone.
        work.add_done_callback(lambda _: self._done())
        try:
            async with asyncio.timeout(self._budget_s):
                picture = await asyncio.wrap_future(work)
        except TimeoutError as error:
            raise Unavailable("the picture took too long to draw", code="CHART_BUSY") from error
        if len(picture) > MAX_BYTES:
            raise Unavailable("the picture is too large to send", code="CHART_BUSY")
        return picture

    def _done(self) -> None:
        self._waiting -= 1


def paint(drawing: Drawing) -> bytes:
    """Return a drawing as a PNG; takes a tenth of a second of one core, so not in an event loop."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, facecolor=_PAPER)
    canvas = FigureCanvasAgg(figure)
    prices = figure.add_axes((0.012, 0.275, 0.888, 0.555))
    volumes = figure.add_axes((0.012, 0.115, 0.888, 0.15), sharex=prices)
    _frame(prices, volumes, drawing)
    _title(figure, drawing)
    if drawing.candles:
        _candles(prices, drawing)
        _volumes(volumes, drawing)
        _scale(prices, drawing)
        _averages(prices, drawing)
        _orders(prices, drawing)
        _fills(prices, drawing)
        _last(prices, drawing)
        _legend(prices)
    else:
        volumes.set_visible(False)
        prices.set_yticks([])
        _write(
            prices.text,
            0.5,
            0.5,
            "no candles in this window",
            size=14,
            color=_DIM,
            ha="center",
            transform=prices.transAxes,
        )
    out = io.BytesIO()
    canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def _write(text: Any, x: float, y: float, what: str, *, size: float = 8.5, color: str = _INK, **how: Any) -> Any:
    """Draw text that is never markup; what a font may not know becomes a question mark."""
    clean = "".join(letter if " " <= letter <= "~" else "?" for letter in what[:160])
    return text(x, y, clean, fontsize=size, color=color, parse_math=False, **how)


def _moment(ms: int, form: str) -> str:
    return datetime.fromtimestamp(ms // 1_000, UTC).strftime(form)


def _price(value: object, drawing: Drawing) -> str:
    return f"{value:,.{drawing.decimals}f}"


def _title(figure: Figure, drawing: Drawing) -> None:
    name = _write(figure.text, 0.012, 0.948, drawing.symbol, size=15, weight="bold")
    _write(figure.text, 0.012, 0.897, _summary(drawing), size=9, color=_DIM)
    box = name.get_window_extent()
    where = f"{drawing.venue}   {drawing.timeframe}   UTC"
    _write(figure.text, box.x1 / WIDTH + 0.014, 0.95, where, size=10.5, color=_DIM)
    right = 0.988
    for badge in reversed(drawing.badges):
        frame = {"boxstyle": "round,pad=0.32", "facecolor": "#fff3d6", "edgecolor": "#b57b00", "linewidth": 0.8}
        drawn = _write(figure.text, right, 0.952, badge, size=9, color="#6b4700", weight="bold", ha="right", bbox=frame)
        right = drawn.get_window_extent().x0 / WIDTH - 0.024
    for line, note in enumerate(_lines(drawing.notes)):
        _write(figure.text, 0.012, 0.036 - 0.026 * line, note, size=7.5, color=_DIM)


def _summary(drawing: Drawing) -> str:
    first, last = drawing.since_ms, drawing.until_ms
    text = f"{_moment(first, '%Y-%m-%d %H:%M:%S')} to {_moment(last, '%Y-%m-%d %H:%M:%S')}"
    if not drawing.candles:
        return text
    newest = drawing.candles[-1]
    change = float(newest.close) / float(drawing.candles[0].open) - 1 if drawing.candles[0].open else 0.0
    named = zip("OHLC", (newest.open, newest.high, newest.low, newest.close), strict=True)
    return (
        f"{text}    {'  '.join(f'{name} {_price(value, drawing)}' for name, value in named)}    {change:+.2%} in view"
    )


def _lines(notes: Sequence[str]) -> list[str]:
    """Return the notes in two lines at most."""
    lines = [""]
    for note in notes:
        joined = f"{lines[-1]};  {note}" if lines[-1] else note
        if len(joined) > 158 and lines[-1] and len(lines) == 1:
            lines.append(note)
        else:
            lines[-1] = joined
    return lines


def _frame(prices: Axes, volumes: Axes, drawing: Drawing) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def price_label(value: float, _: int) -> str:
        low, high = prices.get_ylim()
        covered = drawing.last is not None and abs(value - float(drawing.last)) < (high - low) * _LABEL_ROOM
        return "" if covered else _price(value, drawing)  # the last price stands there

    def volume_label(value: float, _: int) -> str:
        return f"{value:,.6g}" if value else ""

    span = max(1, drawing.until_ms - drawing.since_ms)
    bar_s = max(1, drawing.interval_ms // 1_000)
    for axes in (prices, volumes):
        axes.set_xlim(drawing.since_ms, drawing.until_ms + span * 0.015)
        axes.yaxis.tick_right()
        axes.tick_params(labelsize=8, length=0, colors=_DIM)
        axes.grid(visible=True, color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_color(_GRID)
    at = _ticks(drawing.since_ms + span // 50, drawing.until_ms, bar_s)  # a label at the very edge would be cut
    volumes.set_xticks(at, [_tick_label(ms, at) for ms in at])
    prices.tick_params(labelbottom=False)
    prices.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    prices.yaxis.set_major_formatter(FuncFormatter(price_label))
    volumes.yaxis.set_major_locator(MaxNLocator(nbins=2))
    volumes.yaxis.set_major_formatter(FuncFormatter(volume_label))
    _write(volumes.text, 0.004, 0.86, "volume", size=7.5, color=_DIM, va="top", transform=volumes.transAxes)


def _ticks(since_ms: int, until_ms: int, bar_s: int) -> list[int]:
    """Return at most nine round moments, not closer to each other than candles are."""
    span_s = max(1, (until_ms - since_ms) // 1_000)
    fitting = (s for s in _STEPS_S if s >= bar_s and span_s / s <= 8)
    step = next(fitting, _DAY_S * -(-span_s // (8 * _DAY_S))) * 1_000
    return list(range(-(-since_ms // step) * step, until_ms + 1, step))


def _tick_label(ms: int, at: Sequence[int]) -> str:
    step_s = (at[1] - at[0]) // 1_000 if len(at) > 1 else 60
    if step_s >= _DAY_S or ms % (_DAY_S * 1_000) == 0:
        return _moment(ms, "%d %b")
    return _moment(ms, "%H:%M:%S" if step_s < 60 else "%H:%M")


def _body(candle: Candle, drawing: Drawing) -> tuple[float, float, float]:
    """Return left edge, middle and width of a candle."""
    width = drawing.interval_ms * 0.7
    middle = candle.open_ts_ms + drawing.interval_ms / 2
    return middle - width / 2, middle, width


def _candles(axes: Axes, drawing: Drawing) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    for rises in (True, False):
        wicks: list[Any] = []
        bodies: list[Any] = []
        for candle in drawing.candles:
            if (candle.close >= candle.open) is rises:
                left, middle, width = _body(candle, drawing)
                low, high = sorted((float(candle.open), float(candle.close)))
                wicks += [
                    [(middle, float(candle.low)), (middle, low)],
                    [(middle, high), (middle, float(candle.high))],
                ]
                bodies.append([(left, low), (left + width, low), (left + width, high), (left, high)])
        color = UP if rises else DOWN
        axes.add_collection(LineCollection(wicks, colors=color, linewidths=0.9, zorder=3))
        face = _PAPER if rises else color
        axes.add_collection(PolyCollection(bodies, facecolors=face, edgecolors=color, linewidths=0.9, zorder=4))


def _volumes(axes: Axes, drawing: Drawing) -> None:
    from matplotlib.collections import PolyCollection

    for rises in (True, False):
        bars: list[Any] = []
        for candle in drawing.candles:
            if (candle.close >= candle.open) is rises:
                left, _, width = _body(candle, drawing)
                top = float(candle.volume)
                bars.append([(left, 0), (left + width, 0), (left + width, top), (left, top)])
        color = UP if rises else DOWN
        axes.add_collection(PolyCollection(bars, facecolors=color, edgecolors="none", alpha=0.55))
    axes.set_ylim(0, max((float(candle.volume) for candle in drawing.candles), default=0.0) * 1.15 or 1.0)


def _scale(axes: Axes, drawing: Drawing) -> None:
    """Fit the prices to candles and fills; orders far away are named at the edge instead of flattening the candles."""
    fills = [float(mark.price) for mark in drawing.marks.fills]
    low = min([float(candle.low) for candle in drawing.candles] + fills)
    high = max([float(candle.high) for candle in drawing.candles] + fills)
    room = (high - low) or abs(high) * 0.001 or 1.0
    near = [float(order.price) for order in _waiting(drawing) if low - room / 2 <= order.price <= high + room / 2]
    low, high = min([low, *near]), max([high, *near])
    axes.set_ylim(low - room * 0.09, high + room * 0.12)


def _averages(axes: Axes, drawing: Drawing) -> None:
    middles = [candle.open_ts_ms + drawing.interval_ms / 2 for candle in drawing.candles]
    for (period, values), (color, style) in zip(drawing.ema.items(), _AVERAGES, strict=False):
        xs: list[float] = []
        ys: list[float] = []
        for x, value in zip(middles, values, strict=True):
            if value is not None:
                if xs and x - xs[-1] > drawing.interval_ms * _BRIDGED:
                    xs.append(x)
                    ys.append(math.nan)  # a line across it would look like an average that somebody knew
                xs.append(x)
                ys.append(value)
        if xs:
            axes.plot(xs, ys, color=color, linestyle=style, linewidth=1.2, zorder=5, label=f"EMA {period}")


def _waiting(drawing: Drawing) -> list[OrderMark]:
    return [order for order in drawing.marks.orders if order.until_ms is None]


def _orders(axes: Axes, drawing: Drawing) -> None:
    low, high = axes.get_ylim()
    span = drawing.until_ms - drawing.since_ms
    above, below = 0, 0
    for order in drawing.marks.orders:
        price = float(order.price)
        left = max(order.since_ms, drawing.since_ms)
        right = drawing.until_ms if order.until_ms is None else min(order.until_ms, drawing.until_ms)
        color = BUY if order.side is Side.BUY else SELL
        if low < price < high:
            if right - left >= span / WIDTH:
                axes.plot([left, right], [price, price], color=color, linestyle=(0, (5, 3)), linewidth=1.3, zorder=6)
            if order.until_ms is None:
                _order_text(
                    axes, order, drawing, min((left - drawing.since_ms) / span, 0.8), (price - low) / (high - low)
                )
        elif order.until_ms is None and price >= high and above < _EDGE_LABELS:
            _order_text(axes, order, drawing, 0, 0.945 - 0.05 * above, "(above)")
            above += 1
        elif order.until_ms is None and price <= low and below < _EDGE_LABELS:
            _order_text(axes, order, drawing, 0, 0.01 + 0.05 * below, "(below)")
            below += 1


def _order_text(axes: Axes, order: OrderMark, drawing: Drawing, x: float, y: float, beyond: str = "") -> None:
    text = f"{order.side.value} {plain(order.quantity)} @ {_price(order.price, drawing)} {beyond}"
    color = BUY if order.side is Side.BUY else SELL
    frame = {"boxstyle": "square,pad=0.1", "facecolor": _PAPER, "edgecolor": "none", "alpha": 0.75}
    _write(
        axes.text, 0.006 + x, y + 0.008, text.rstrip(), size=8, color=color, va="bottom", transform=axes.transAxes,
        bbox=frame, zorder=8,
    )  # fmt: skip


def _fills(axes: Axes, drawing: Drawing) -> None:
    for side, color, shape in ((Side.BUY, BUY, "^"), (Side.SELL, SELL, "v")):
        made = [mark for mark in drawing.marks.fills if mark.side is side]
        if made:
            xs = [min(max(mark.at_ms, drawing.since_ms), drawing.until_ms) for mark in made]
            ys = [float(mark.price) for mark in made]
            name = "bought" if side is Side.BUY else "sold"
            axes.scatter(xs, ys, marker=shape, s=80, c=color, edgecolors=_PAPER, linewidths=1.0, zorder=9, label=name)


def _legend(axes: Axes) -> None:
    """Name averages and fills above the prices, where no candle is."""
    shapes, names = axes.get_legend_handles_labels()
    if shapes:
        axes.legend(
            shapes, names, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=5, fontsize=8, frameon=False,
            borderpad=0, borderaxespad=0.25, handlelength=1.8, columnspacing=1.4, labelcolor=_DIM,
        )  # fmt: skip


def _last(axes: Axes, drawing: Drawing) -> None:
    if drawing.last is None:
        return
    low, high = axes.get_ylim()
    price = float(drawing.last)
    if low < price < high:
        axes.axhline(price, color=_INK, linewidth=0.7, linestyle=(0, (1, 2)), zorder=2)
    height = min(max((price - low) / (high - low), 0.02), 0.98)
    frame = {"boxstyle": "square,pad=0.25", "facecolor": _INK, "edgecolor": "none"}
    _write(
        axes.text, 1.004, height, _price(drawing.last, drawing), size=8, color=_PAPER, va="center",
        transform=axes.transAxes, bbox=frame, zorder=10, clip_on=False,
    )  # fmt: skip

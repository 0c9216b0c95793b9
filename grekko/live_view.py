"""What a person sees while the desk runs: a live screen in a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from grekko.picture import DeskPicture
from grekko.report import Marks, profit
from grekko.wording import clock_text, describe, number
from trading.domain.approvals import TradingState
from trading.domain.events import EventEnvelope
from trading.domain.identifiers import Currency
from trading.domain.instruments import InstrumentId

_QUIET = ("audit.", "reservation.", "service.", "order.submitted", "order.initialized", "order.accepted")
_STATE_STYLE = {TradingState.ACTIVE: "bold green", TradingState.REDUCING: "bold yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A price as the market server gave it.

    Attributes:
        age_ms: since the market server published it.
    """

    instrument_id: InstrumentId
    bid: Decimal
    ask: Decimal
    age_ms: int
    feed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Everything that the screen shows beside the picture.

    Attributes:
        rooms: whether each room answers.
    """

    title: str
    seconds: float
    quotes: tuple[Quote, ...]
    market_problem: str
    opening_marks: Marks
    marks: Marks
    rooms: dict[str, bool]
    quote_currency: Currency


def render(picture: DeskPicture, moment: Moment) -> RenderableType:
    """Return the whole screen."""
    return Group(
        _header(picture, moment),
        Panel(_lines(picture.recent["coordinator"], 8), title="proposals and votes", title_align="left"),
        Panel(_lines(picture.recent["risk"], 6), title="approvals and denials", title_align="left"),
        Panel(_lines(picture.recent["execution"], 6), title="orders", title_align="left"),
        _positions(picture, moment),
    )


def _header(picture: DeskPicture, moment: Moment) -> Panel:
    text = Text()
    for quote in moment.quotes:
        text.append(f"{quote.instrument_id.symbol} ", style="bold")
        text.append(f"{number(quote.bid)} / {number(quote.ask)}  ")
        text.append(f"{quote.age_ms} ms old, {quote.feed}   ", style="dim" if quote.age_ms < 2000 else "bold red")
    text.append(f"{moment.seconds:.0f} s\n", style="dim")
    if moment.market_problem:
        text.append(f"market {moment.market_problem}\n", style="bold red")
    text.append("breaker ", style="dim")
    text.append(str(picture.state), style=_STATE_STYLE.get(picture.state, "bold red"))
    text.append(f"  epoch {picture.epoch.generation}.{picture.epoch.counter}  ({picture.state_reason})\n", style="dim")
    for scope, (state, reason) in sorted(picture.scopes.items()):
        text.append(f"{scope} {state}  ({reason})\n", style=_STATE_STYLE.get(state, "bold red"))
    for name, up in moment.rooms.items():
        text.append(f"{'●' if up else '○'} {name}  ", style="green" if up else "bold red")
    return Panel(text, title=moment.title, title_align="left")


def _lines(events: Iterable[EventEnvelope], count: int) -> Text:
    shown = [event for event in events if not event.event_type.startswith(_QUIET)][-count:]
    text = Text(no_wrap=True, overflow="ellipsis")
    for event in shown:
        text.append(clock_text(event.timestamp_ms) + " ", style="dim")
        text.append(describe(event.payload) + "\n", style=_style(event.event_type))
    for _ in range(count - len(shown)):
        text.append("\n")
    text.rstrip()
    return text


def _style(event_type: str) -> str:
    styles = {
        "risk.denied": "red",
        "risk.approved": "green",
        "risk.human_asked": "bold yellow",
        "order.filled": "cyan",
        "breaker.tripped": "bold red",
        "alarm.raised": "bold red",
        "proposal.opened": "bold",
    }
    return styles.get(event_type, "")


def _positions(picture: DeskPicture, moment: Moment) -> Panel:
    table = Table(box=None, pad_edge=False, expand=True)
    for column in ("instrument", "quantity", "average", "mark", "unrealized", "realized"):
        table.add_column(column, justify="left" if column == "instrument" else "right")
    for instrument_id, position in picture.account.positions.items():
        mark = moment.marks.get(instrument_id)
        average = position.average_price
        table.add_row(
            str(instrument_id),
            number(position.quantity),
            "-" if average is None else number(average, places=2),
            "-" if mark is None else number(mark, places=2),
            "-" if mark is None else number(position.unrealized(mark), places=2),
            number(position.realized, places=2),
        )
    earned = profit(picture, moment.opening_marks, moment.marks, quote=moment.quote_currency)
    counts = picture.counts
    summary = (
        f"{counts.proposals} proposals · {counts.votes} votes · {counts.decisions_approved} passed · "
        f"{counts.approvals} signed · {counts.denied} denied · {counts.fills} fills · "
        f"net {number(earned.net, places=2)} {moment.quote_currency} after {number(earned.fees, places=2)} fees"
    )
    return Panel(Group(table, Text(summary, style="bold")), title="positions", title_align="left")


class PlainLog:
    """Prints what is new as plain lines, for pipes, logs and continuous integration."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[str, int] = {}
        self._problem = ""

    def show(self, picture: DeskPicture, market_problem: str) -> None:
        """Print the events that came since the last call (at most what the picture keeps)."""
        if market_problem != self._problem:
            self._problem = market_problem
            self._console.print(f"market {market_problem or 'data arrives'}", markup=False, highlight=False)
        for room, events in picture.recent.items():
            for event in events:
                if event.seq > self._seen.get(room, 0) and not event.event_type.startswith((*_QUIET, "vote.")):
                    self._console.print(
                        f"{clock_text(event.timestamp_ms)} {room:<11} {describe(event.payload)}",
                        markup=False,
                        highlight=False,
                        soft_wrap=True,
                    )
            if events:
                self._seen[room] = events[-1].seq

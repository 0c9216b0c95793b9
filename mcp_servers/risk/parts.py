"""What a risk service is made of, and what it reports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trading.domain.denials import RuleResult
from trading.domain.events import HeadWitnessed
from trading.domain.identifiers import AccountId, Currency, Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import TradePrint
from trading.domain.proposals import Mode, OrderIntent
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Ledger, LedgerReader
from trading.ports.signing import Signer, Verifier

from .assessment import Approved
from .context import Frame
from .decisions import PinnedKeys
from .document import LimitsSource
from .heartbeat import HeartbeatSink
from .limits import RiskLimits
from .markets import MarketSource
from .policies.pipeline import RULES, RuleFunction

if TYPE_CHECKING:
    from .numbers.history import ClosesSource
    from .score.live import BarsSource


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskParts:
    """Everything the room is made of; ``bootstrap`` takes the real ones, tests their fakes.

    Attributes:
        ledger: risk's own, held under its lease.
        execution, coordinator: the other rooms' ledgers, read only; without a coordinator no decision is accepted.
        last_trade: newest public trade of a data instrument; None where a limit on trade sizes cannot be judged.
        limits: what the document said when it was read for this start; what is in force is the frame source's policy.
        document: read again while running; None watches nothing.
        data_of: whose market data prices an instrument.
        keys: pinned public keys of voters and leader; None accepts no decision.
        operator: pins the operator's key; operator_directory: where command files are looked for.
        heads: newest signed audit heads of other rooms, to be witnessed; own_head: risk's own, to be shown.
        notify_url: who is told of the breaker's changes; a secret, empty tells nobody.
        closes: archived candles for the risk numbers; None leaves them the bundled history.
        bars: archived candles for the risk score; None leaves it at 1.  score_model: a model file of the operator's.
    """

    ledger: Ledger
    execution: LedgerReader
    coordinator: LedgerReader | None = None
    market: MarketSource
    last_trade: Callable[[InstrumentId], TradePrint | None] | None = None
    signer: Signer
    clock: Clock
    ids: IdFactory
    heartbeats: HeartbeatSink
    limits: RiskLimits
    document: LimitsSource | None = None
    desk: str = "desk"
    mode: Mode = Mode.PAPER
    account_id: AccountId
    venue: Venue
    quote: Currency
    symbols: tuple[Symbol, ...]
    data_of: Callable[[InstrumentId], InstrumentId]
    keys: PinnedKeys | None = None
    operator: Verifier | None = None
    operator_directory: Path | None = None
    heads: Sequence[Callable[[], HeadWitnessed | None]] = ()
    own_head: Callable[[], HeadWitnessed | None] | None = None
    wakeups: AsyncIterator[object] | None = None
    rules: Sequence[RuleFunction] = RULES
    closes: ClosesSource | None = None
    notify_url: str = ""
    bars: BarsSource | None = None
    score_model: Path | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check_order`` found; nothing was reserved or counted.

    Attributes:
        max_allowed_now: the same order at the largest size that passes now, None when no size does.
        nearest_legal: the legal order nearest to a refused one.
    """

    intent: OrderIntent
    passed: bool
    results: tuple[RuleResult, ...]
    max_allowed_now: OrderIntent | None
    nearest_legal: OrderIntent | None
    effect: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class ApprovalReport:
    """One approval as it stands, or one order that waits for the operator.

    Attributes:
        named: the id that was asked for.
        approved: None while, or because, the operator has not approved it.
        state: open, release_requested or released; of a waiting order a ``PendingState``.
        fate: what execution wrote: consumed, lapsed, voided, or empty while it is undecided.
        detail: of a waiting order, why it was closed or how the operator answers.
    """

    named: str
    approved: Approved | None
    state: str
    fate: str = ""
    order_id: str = ""
    expires_ms: int = 0
    detail: str = ""

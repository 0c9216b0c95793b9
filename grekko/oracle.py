"""Compares the desk's books with the paper venue's own: the venue never read our ledgers, so it is an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from trading.adapters.venues.paper.journal import JournalContent, read_journal
from trading.domain.accounts import AccountBook, split_symbol
from trading.domain.errors import ConfigurationError
from trading.domain.identifiers import ApprovalId, ClientOrderId, Currency
from trading.domain.money import ZERO, add, multiply


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the venue's journal says about our orders.

    Attributes:
        orders: how many orders the venue took in.
        duplicated: client order ids it took in twice.
        without_approval: client order ids it has that no verified approval explains.
        differences: fills that only one side knows, in words.
    """

    orders: int
    duplicated: tuple[str, ...]
    without_approval: tuple[str, ...]
    differences: tuple[str, ...]


def compare_with_venue(journal: Path, approved: Mapping[ClientOrderId, ApprovalId], account: AccountBook) -> Comparison:
    """Compare the venue's journal with the desk's approvals and fills.

    Args:
        journal: the paper venue's file; absent means a venue that never had an order.
        approved: the approval behind each client order id, from verified ledgers.
        account: the fold of the execution ledger.
    """
    try:
        content = read_journal(journal)
    except (ConfigurationError, KeyError) as error:  # a line that was changed, or one that its order is missing for
        return Comparison(0, (), (), (f"{journal.name} is damaged: {error}",))
    return Comparison(
        orders=len(content.orders),
        duplicated=tuple(content.duplicates),
        without_approval=tuple(str(client_id) for client_id in content.orders if client_id not in approved),
        differences=tuple(_differences(content, account)),
    )


def _differences(content: JournalContent, account: AccountBook) -> list[str]:
    """Return where balances disagree; equal balances of exact decimals mean that the same fills were booked."""
    totals: dict[Currency, Decimal] = dict(content.deposits)
    for trade in content.trades:
        base, quote = split_symbol(trade.instrument_id)
        sign = trade.side.sign
        for currency, amount in (
            (base, trade.quantity * sign),
            (quote, multiply(trade.quantity, trade.price) * -sign),
            (trade.fee_currency, -trade.fee),
        ):
            totals[currency] = add(totals.get(currency, ZERO), amount)
    return [
        f"{currency}: the venue has {totals.get(currency, ZERO):f}, the ledger {account.totals.get(currency, ZERO):f}"
        for currency in sorted({*totals, *account.totals})
        if totals.get(currency, ZERO) != account.totals.get(currency, ZERO)
    ]

"""What new risk needs beside legal terms, how several wishes about it join, and what an operator's word may change."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final

from trading.domain.denials import Rule


class Needs(StrEnum):
    """Who must have agreed to new risk, from the mildest to the strictest; of several the strictest holds.

    ``vote``: a verified decision, or the operator. ``human``: the operator, whatever was voted. ``vote_and_human``:
    both. ``denied``: nobody can, short of changing the limits.
    """

    NONE = "none"
    VOTE = "vote"
    HUMAN = "human"
    VOTE_AND_HUMAN = "vote_and_human"
    DENIED = "denied"

    def met_by(self, *, decided: bool, human: bool) -> bool:
        """Return whether this much agreement is enough."""
        match self:
            case Needs.NONE:
                return True
            case Needs.VOTE:
                return decided or human
            case Needs.HUMAN:
                return human
            case Needs.VOTE_AND_HUMAN:
                return decided and human
            case Needs.DENIED:
                return False


_RANK: Final = {needs: rank for rank, needs in enumerate(Needs)}


def strictest(held: Needs, wanted: Needs) -> Needs:
    """Return the stricter of two."""
    return held if held is wanted or _RANK[held] > _RANK[wanted] else wanted


#: Rules that guard amounts. An operator may override those that the limits name, for one order at a time; never what
#: says whether the order is true, possible, priced, or whether trading is on.
OVERRIDABLE: Final = frozenset(
    {
        Rule.ORDER_QUANTITY_MAX,
        Rule.ORDER_NOTIONAL_MAX,
        Rule.TRADE_SIZE_MULTIPLE,
        Rule.POSITION_MAX,
        Rule.EXPOSURE_GROSS_MAX,
        Rule.EXPOSURE_NET_MAX,
        Rule.CONCENTRATION_MAX,
        Rule.TURNOVER_MAX,
        Rule.DRIFT_MAX,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """The operator's yes to one order, checked and fresh.

    Attributes:
        overrides: rules that may fail; what else fails still refuses.
        price_limit: quote per base, the worst price that the operator was shown; None for an order that has none.
    """

    overrides: frozenset[Rule]
    price_limit: Decimal | None

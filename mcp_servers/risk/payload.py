"""The exact bytes of an approval, written directly.

``codec.canonical`` gives the same bytes for any value by encoding, parsing and sorting; this writes the one form that
is signed thousands of times a second. A test compares the two for every kind of approval.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

import orjson

from trading.domain.approvals import Approval
from trading.domain.money import plain
from trading.domain.standing_exits import ExitTerms


def approval_payload(approval: Approval) -> bytes:
    """Return the RFC 8785 form of an approval: keys in order of their code points, decimals as plain text."""
    order, terms = approval.order, approval.standing_exit
    return (
        f'{{"agent_id":{_name(approval.agent_id)},"approval_id":{_quoted(approval.approval_id)},'
        f'"band_high":"{plain(approval.band_high)}","band_low":"{plain(approval.band_low)}",'
        f'"decision_id":{_optional_name(approval.decision_id)},"effect":"{approval.effect}",'
        f'"epoch":[{approval.epoch[0]},{approval.epoch[1]}],"expires_ms":{approval.expires_ms},'
        f'"issued_ms":{approval.issued_ms},"key_id":{_name(approval.key_id)},'
        f'"max_notional":"{plain(approval.max_notional)}","mode":"{approval.mode}",'
        f'"order":{{"account_id":{_name(order.account_id)},"client_order_id":{_quoted(order.client_order_id)},'
        f'"limit_price":{_optional(order.limit_price)},"order_type":"{order.order_type}",'
        f'"post_only":{_flag(order.post_only)},"quantity":"{plain(order.quantity)}",'
        f'"reduce_only":{_flag(order.reduce_only)},"side":"{order.side}","stop_price":{_optional(order.stop_price)},'
        f'"symbol":{_name(order.symbol)},"time_in_force":"{order.time_in_force}","venue":{_name(order.venue)}}},'
        f'"policy_digest":{_name(approval.policy_digest)},"policy_version":{approval.policy_version},'
        f'"request_id":{_name(approval.request_id)},"risk_score":"{plain(approval.risk_score)}",'
        f'"standing_exit":{"null" if terms is None else _EXITS.text(terms)}}}'
    ).encode()


class _Exits:
    """Writes the terms of a standing exit; the orders of one moment share them."""

    def __init__(self) -> None:
        self._newest: tuple[ExitTerms | None, str] = (None, "")

    def text(self, terms: ExitTerms) -> str:
        """Return their JSON."""
        known, text = self._newest
        if known is not terms:
            text = _exit(terms)
            self._newest = terms, text
        return text


_EXITS = _Exits()


def _exit(terms: ExitTerms) -> str:
    plan = terms.plan
    return (
        f'{{"expires_ms":{terms.expires_ms},"floor":"{plain(terms.floor)}",'
        f'"plan":{{"atr_bar_ms":{plan.atr_bar_ms},"atr_bars":{plan.atr_bars},'
        f'"atr_multiple":{_optional(plan.atr_multiple)},'
        f'"hold_max_ms":{"null" if plan.hold_max_ms is None else plan.hold_max_ms},'
        f'"portfolio_loss_pct":{_optional(plan.portfolio_loss_pct)},"stop_bps":"{plain(plan.stop_bps)}",'
        f'"trailing_bps":{_optional(plan.trailing_bps)}}},"side":"{terms.side}"}}'
    )


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()


_name = lru_cache(maxsize=1024)(_quoted)  # of few agents, symbols, keys; a request's id comes 256 times in a batch


def _optional_name(text: str | None) -> str:
    return "null" if text is None else _name(text)


def _optional(value: Decimal | None) -> str:
    return "null" if value is None else f'"{plain(value)}"'


def _flag(value: bool) -> str:
    return "true" if value else "false"

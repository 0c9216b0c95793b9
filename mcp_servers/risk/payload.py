"""The exact bytes of an approval, written directly.

``codec.canonical`` gives the same bytes for any value by encoding, parsing and sorting; this writes the one form that
is signed thousands of times a second. A test compares the two for every kind of approval.
"""

from __future__ import annotations

from decimal import Decimal

import orjson

from trading.domain.approvals import Approval
from trading.domain.money import plain
from trading.domain.standing_exits import ExitTerms


def approval_payload(approval: Approval) -> bytes:
    """Return the RFC 8785 form of an approval: keys in order of their code points, decimals as plain text."""
    order = approval.order
    return orjson.dumps(
        {
            "agent_id": approval.agent_id,
            "approval_id": approval.approval_id,
            "band_high": plain(approval.band_high),
            "band_low": plain(approval.band_low),
            "decision_id": approval.decision_id,
            "effect": approval.effect.value,
            "epoch": tuple(approval.epoch),
            "expires_ms": approval.expires_ms,
            "issued_ms": approval.issued_ms,
            "key_id": approval.key_id,
            "max_notional": plain(approval.max_notional),
            "mode": approval.mode.value,
            "order": {
                "account_id": order.account_id,
                "client_order_id": order.client_order_id,
                "limit_price": _optional(order.limit_price),
                "order_type": order.order_type.value,
                "post_only": order.post_only,
                "quantity": plain(order.quantity),
                "reduce_only": order.reduce_only,
                "side": order.side.value,
                "stop_price": _optional(order.stop_price),
                "symbol": order.symbol,
                "time_in_force": order.time_in_force.value,
                "venue": order.venue,
            },
            "policy_digest": approval.policy_digest,
            "policy_version": approval.policy_version,
            "request_id": approval.request_id,
            "risk_score": plain(approval.risk_score),
            "standing_exit": None if approval.standing_exit is None else _exit(approval.standing_exit),
        }
    )


def _exit(terms: ExitTerms) -> dict[str, object]:
    plan = terms.plan
    return {
        "expires_ms": terms.expires_ms,
        "floor": plain(terms.floor),
        "plan": {
            "atr_bar_ms": plan.atr_bar_ms,
            "atr_bars": plan.atr_bars,
            "atr_multiple": _optional(plan.atr_multiple),
            "hold_max_ms": plan.hold_max_ms,
            "portfolio_loss_pct": _optional(plan.portfolio_loss_pct),
            "stop_bps": plain(plan.stop_bps),
            "trailing_bps": _optional(plan.trailing_bps),
        },
        "side": terms.side.value,
    }


def _optional(value: Decimal | None) -> str | None:
    return None if value is None else plain(value)

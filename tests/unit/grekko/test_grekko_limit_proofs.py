"""The audit finds limits that were loosened without the operator, and approvals by limits that never were."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from grekko.limit_proofs import LimitProofs
from mcp_servers.risk.adoption import LIMITS_PAYLOAD_TYPE, LimitsCommand
from mcp_servers.risk.limits import RiskLimits, document_of
from trading.adapters import codec
from trading.adapters.signing import digest, seal
from trading.domain.errors import TradingError
from trading.domain.events import LimitsLoaded
from trading.testing.builders import ACCOUNT, build_approval
from trading.testing.keys import make_test_signer

BASE, TIGHT, LOOSE = (RiskLimits(daily_loss_max=Decimal(value)) for value in (2_000, 1_000, 3_000))


@pytest.fixture
def proofs(tmp_path: Path) -> LimitProofs:
    (tmp_path / "operator.pub").write_text(make_test_signer("operator").public_key + "\n")
    return LimitProofs(tmp_path)


def loaded(version: int, limits: RiskLimits, *, by: str = "file", envelope: str = "") -> LimitsLoaded:
    document = document_of(limits)
    return LimitsLoaded(
        version=version,
        digest=digest(document.encode()),
        min_policy_version=version,
        document=document,
        by=by,
        envelope=envelope,
    )


def signed(limits: RiskLimits, *, base: int = 1, key: str = "operator") -> str:
    document = document_of(limits)
    command = LimitsCommand(
        command_id="c",
        desk="desk",
        account_id=ACCOUNT,
        reason="r",
        by="alice",
        issued_ms=1,
        document=document,
        digest=digest(document.encode()),
        base_version=base,
    )
    return seal(codec.canonical(command), LIMITS_PAYLOAD_TYPE, make_test_signer(key)).to_json()


def test_an_honest_history_is_proven(proofs: LimitProofs) -> None:
    history = [
        loaded(1, BASE, by="start"),
        loaded(2, TIGHT),
        loaded(2, TIGHT, by="start"),
        loaded(3, LOOSE, by="operator:alice", envelope=signed(LOOSE, base=2)),
    ]
    for event in history:
        proofs.loaded(event)
    proofs.approved(
        replace(
            build_approval(key_id=make_test_signer("risk").key_id), policy_version=2, policy_digest=history[1].digest
        )
    )


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (loaded(2, LOOSE), "without the operator's signature"),
        (loaded(2, LOOSE, by=""), "without the operator's signature"),
        (loaded(2, LOOSE, envelope=signed(TIGHT)), "other limits"),
        (loaded(2, LOOSE, envelope=signed(LOOSE, base=0)), "another version"),
        (loaded(2, LOOSE, envelope=signed(LOOSE, key="risk")), ""),
        (loaded(1, TIGHT), "two documents"),
        (loaded(3, TIGHT), "a version is missing"),
        (replace(loaded(2, TIGHT), digest="0" * 64), "the digest is of other limits"),
    ],
)
def test_what_was_loosened_or_renamed_is_found(proofs: LimitProofs, event: LimitsLoaded, said: str) -> None:
    proofs.loaded(loaded(1, BASE, by="start"))
    with pytest.raises(TradingError) as found:
        proofs.loaded(event)
    assert said in str(found.value)


@pytest.mark.parametrize("changes", [{"policy_version": 2}, {"policy_digest": "0" * 64}])
def test_an_approval_by_limits_that_never_were_is_found(proofs: LimitProofs, changes: dict[str, Any]) -> None:
    event = loaded(1, BASE, by="start")
    proofs.loaded(event)
    honest = replace(
        build_approval(key_id=make_test_signer("risk").key_id), policy_version=1, policy_digest=event.digest
    )
    proofs.approved(honest)
    with pytest.raises(TradingError):
        proofs.approved(replace(honest, **changes))


def test_a_ledger_from_before_limits_were_signed_is_not_accused(proofs: LimitProofs) -> None:
    proofs.loaded(loaded(1, BASE, by=""))
    proofs.loaded(loaded(2, LOOSE, by=""))
    with pytest.raises(TradingError):
        proofs.loaded(loaded(3, RiskLimits(daily_loss_max=Decimal(4_000)), by="start"))

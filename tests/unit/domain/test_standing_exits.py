"""A slice of an exit has one name, and what is beyond a floor depends on the side."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from trading.adapters import codec
from trading.domain.approvals import Effect
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import ApprovalId
from trading.domain.market_data import Side
from trading.domain.standing_exits import ExitSlice, ExitTerms, StandingExit, StopPlan
from trading.testing.builders import build_approval

TERMS = ExitTerms(side=Side.SELL, floor=Decimal("30000"), plan=StopPlan(stop_bps=Decimal(500)), expires_ms=86_400_000)


def an_exit() -> StandingExit:
    approval = replace(build_approval(key_id="k"), standing_exit=TERMS)
    found = approval.exit()
    assert found is not None
    return found


def test_an_exit_that_came_with_an_approval_has_its_id_and_place() -> None:
    found, approval = an_exit(), build_approval(key_id="k")
    assert found.exit_id == approval.approval_id
    assert found.instrument_id == approval.order.instrument_id
    assert found.terms is TERMS


def test_an_approval_without_an_exit_gives_none() -> None:
    assert build_approval(key_id="k", effect=Effect.REDUCE).exit() is None


def test_slices_have_names_of_their_own_that_never_change() -> None:
    exit_id = ApprovalId("0193d5c0-0000-7000-8000-000000000001")
    names = [ExitSlice(exit_id=exit_id, number=number).approval_id for number in range(1, 50)]
    assert len(set(names)) == len(names)
    assert names[0] == "03a22403-f8f1-53b8-abfa-54dbb30a5be0"  # a restart must come to the same name
    assert exit_id not in names


def test_slices_are_numbered_from_one() -> None:
    with pytest.raises(InvalidValue):
        ExitSlice(exit_id=ApprovalId("a"), number=0)


def test_beyond_the_floor_is_below_it_for_a_sale_and_above_it_for_a_purchase() -> None:
    found = an_exit()
    assert found.is_beyond(Decimal("29999.99"))
    assert not found.is_beyond(Decimal("30000"))
    bought = replace(found, terms=replace(TERMS, side=Side.BUY))
    assert bought.is_beyond(Decimal("30000.01"))


def test_an_exit_survives_the_codec() -> None:
    found = an_exit()
    assert codec.decode(StandingExit, codec.canonical(found)) == found

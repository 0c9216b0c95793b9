"""Waiting orders as a model sees them, in both protocol modes, and answers that only the operator's key can give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.hosting import ToolFailure, call
from mcp_servers.risk.operator_commands import ANSWER_PAYLOAD_TYPE, COMMAND_PAYLOAD_TYPE, OperatorAnswer
from tests.integration.test_risk_server import LIMIT, client_of
from tests.mcp_harness import QUICK_WAYS, Way
from tests.risk_support import Desk, open_desk, wide_limits
from tests.unit.test_risk_people import OPERATOR
from trading.adapters import codec
from trading.adapters.signing import seal
from trading.domain.identifiers import AccountId
from trading.domain.proposals import REASON_MAX
from trading.testing.keys import make_test_signer


async def desk_in(tmp_path: Path) -> Desk:
    limits = wide_limits(authority="human")
    return await open_desk(limits=limits, operator=OPERATOR, operator_directory=tmp_path / "operator")


def answer_to(desk: Desk, pending_id: str) -> OperatorAnswer:
    return OperatorAnswer(
        command_id="00000000-0000-0000-0000-000000000001",
        desk="desk",
        account_id=desk.parts.account_id,
        pending_id=pending_id,
        approve=True,
        overrides=(),
        reason="fine",
        by="ann",
        issued_ms=desk.clock.now_ms(),
    )


async def leave(
    desk: Desk, tmp_path: Path, answer: OperatorAnswer, *, key: str = "operator", kind: str = ANSWER_PAYLOAD_TYPE
) -> None:
    directory = tmp_path / "operator"
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"any-{answer.command_id}.json"
    path.write_text(seal(codec.canonical(answer), kind, make_test_signer(key)).to_json())
    path.chmod(0o600)
    await desk.risk.tick()


@pytest.mark.parametrize("way", QUICK_WAYS, ids=str)
async def test_model_asks_polls_and_gets_the_approval_that_the_person_gave(way: Way, tmp_path: Path) -> None:
    desk = await desk_in(tmp_path)
    async with client_of(desk, way) as client:
        check = await call(client, "risk_check_order", **LIMIT)
        failed = [rule for rule in check["rules"] if not rule["passed"]]
        assert [(rule["rule"], rule["message"]) for rule in failed] == [
            ("AUTHORITY", "needs the operator's word; a vote is not enough; asked for, it waits for the operator")
        ]
        got = await call(client, "risk_request_approval", request_id="r", orders=[LIMIT, {**LIMIT, "amount": "0.02"}])
        assert (got["approved"], got["denied"], got["approval_ids"]) == (0, 0, [])
        assert [row["index"] for row in got["pending_human"]] == [0, 1]
        first, second = [row["pending_id"] for row in got["pending_human"]]
        again = await call(client, "risk_request_approval", request_id="r", orders=[LIMIT, {**LIMIT, "amount": "0.02"}])
        assert (again["replayed"], again["pending_human"]) == (True, got["pending_human"])
        shown = await call(client, "risk_get_approval", approval_id=first)
        assert (shown["state"], shown["approval"], shown["expired"]) == ("pending", None, False)
        assert "grekko approvals" in shown["detail"]
        assert (await call(client, "risk_get_exposure"))["reservations"] == 0

        await leave(desk, tmp_path, answer_to(desk, first))
        shown = await call(client, "risk_get_approval", approval_id=first, include_envelope=True)
        assert (shown["state"], shown["fate"]) == ("approved", "")
        assert shown["approval"]["order"]["quantity"] == "0.01"
        assert "signatures" in shown["envelope"]
        same = await call(client, "risk_get_approval", approval_id=shown["approval"]["approval_id"])
        assert same["state"] == "open"
        withdrawn = await call(client, "risk_release_approval", approval_id=second)
        assert (withdrawn["approval_id"], withdrawn["state"]) == (second, "withdrawn")
        with pytest.raises(ToolFailure) as caught:
            await call(client, "risk_get_approval", approval_id="nothing")
        assert caught.value.code == "UNKNOWN_APPROVAL"
        limits = await call(client, "risk_get_limits")
        assert (limits["values"]["authority"], limits["values"]["overridable"]) == ("human", "")


FORGED: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("an agent's key", {}, {"key": "a"}),
    ("risk's own key", {}, {"key": "risk"}),
    ("as another kind of command", {}, {"kind": COMMAND_PAYLOAD_TYPE}),
    ("another desk", {"desk": "other"}, {}),
    ("another account", {"account_id": AccountId("other")}, {}),
    ("from an hour ago", {"issued_ms": 1}, {}),
    ("without a reason", {"reason": " "}, {}),
    ("another order", {"pending_id": "p-unknown"}, {}),
]


@pytest.mark.parametrize(("changes", "how"), [each[1:] for each in FORGED], ids=[each[0] for each in FORGED])
async def test_answer_that_is_not_the_operators_own_and_fresh_changes_nothing(
    changes: dict[str, Any], how: dict[str, str], tmp_path: Path
) -> None:
    desk = await desk_in(tmp_path)
    async with client_of(desk, Way("memory", "auto")) as client:
        got = await call(client, "risk_request_approval", request_id="r", **LIMIT)
        (row,) = got["pending_human"]
        await leave(desk, tmp_path, replace(answer_to(desk, row["pending_id"]), **changes), **how)
        assert (await call(client, "risk_get_approval", approval_id=row["pending_id"]))["state"] == "pending"
    assert len(desk.risk.reservations) == 0


async def test_used_answer_is_used_once_even_when_its_file_comes_back(tmp_path: Path) -> None:
    desk = await desk_in(tmp_path)
    async with client_of(desk, Way("memory", "auto")) as client:
        ids = [
            (await call(client, "risk_request_approval", request_id=name, **LIMIT))["pending_human"][0]["pending_id"]
            for name in ("one", "two")
        ]
        await leave(desk, tmp_path, answer_to(desk, ids[0]))
        await leave(desk, tmp_path, answer_to(desk, ids[1]))  # the same command id
        states = [(await call(client, "risk_get_approval", approval_id=each))["state"] for each in ids]
    assert states == ["approved", "pending"]


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_full_batch_of_waiting_orders_is_capped_and_fits_a_reply(era: str, tmp_path: Path) -> None:
    desk = await desk_in(tmp_path)
    async with client_of(desk, Way("memory", era)) as client:
        orders = [{**LIMIT, "reason": "x" * REASON_MAX}] * 256
        got = await call(client, "risk_request_approval", request_id="r", orders=orders)
    assert (len(got["pending_human"]), got["denied"]) == (5, 251)
    assert "too many orders wait" in got["denials"][0]["failures"][0]["message"]

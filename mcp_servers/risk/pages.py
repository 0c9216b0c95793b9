"""Answers that may be long, cut so that a model can read all of one and ask for the next.

Rules kept here:

- Counts are always of everything; rows are cut whole, and ``next_cursor`` leads to every one that was left out.
- An exposure's page is of the moment it was asked for: what was opened meanwhile may be missing from later pages, and
  is in the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from mcp_servers.envelope import MAX_CHARS, Page, fit, timestamp
from mcp_servers.risk import schemas
from mcp_servers.risk.pending import HOW_TO_ANSWER
from mcp_servers.risk.rows import approval_row, order_row, rule_row
from mcp_servers.risk.sign_off import Answer
from trading.domain.denials import RiskDenial
from trading.domain.errors import InvalidValue
from trading.domain.money import ZERO, add
from trading.domain.pending import PendingHuman

#: Characters of JSON that the changing part of a reply may take; the rest is for its envelope.
_ROOM: Final = MAX_CHARS - 1_000
#: Failed rules shown of each denial, the first number that fits; all of them if possible.
_FAILURES: Final = (1_000, 6, 4, 2)
#: Agents whose promises are shown one by one; no agent's name has brackets.
_AGENTS_MAX: Final = 40
_OTHERS: Final = "(others)"


class _Position(NamedTuple):
    """How many approval ids and how many denials earlier pages gave."""

    ids: int
    denials: int


def answer_page(answer: Answer, cursor: str | None) -> tuple[schemas.Approvals, bool, str | None]:
    """Return the answer or its next page, whether something was left out, and the cursor that continues it.

    A few orders are answered in full. Of a large batch approvals are named by id; denials come a few at a time.

    Raises:
        InvalidValue: a cursor of another form.
    """
    start = _position(cursor)
    denials = [(index, item) for index, item in enumerate(answer.outcomes) if isinstance(item, RiskDenial)]
    detailed = len(answer.outcomes) <= schemas.DETAILED_MAX
    ids = [item.approval.approval_id for item in answer.approved]
    approvals = [approval_row(item) for item in answer.approved] if detailed else []
    used = sum(len(row.model_dump_json()) for row in approvals)
    shown, whole = _denial_rows(denials[start.denials : start.denials + schemas.DETAILED_MAX], _ROOM - used, detailed)
    used += sum(len(row.model_dump_json()) for row in shown)
    longest = max((len(item) for item in ids), default=0) + 3
    end = _Position(start.ids + max(1, (_ROOM - used) // longest), start.denials + len(shown))
    data = schemas.Approvals(
        request_id=answer.request_id,
        approved=len(ids),
        denied=len(denials),
        denied_at=[index for index, _ in denials],
        approval_ids=list(ids[start.ids : end.ids]),
        approvals=approvals,
        denials=shown,
        pending_human=[
            _pending_row(index, item) for index, item in enumerate(answer.outcomes) if isinstance(item, PendingHuman)
        ],
        replayed=answer.replayed,
    )
    more = end.ids < len(ids) or end.denials < len(denials)
    following = f"{min(end.ids, len(ids))}.{end.denials}" if more else None
    return data, more or not whole, following


def _pending_row(index: int, item: PendingHuman) -> schemas.PendingRow:
    return schemas.PendingRow(
        index=index,
        pending_id=item.pending_id,
        expires_at=timestamp(item.expires_ms),
        needs=f"{', '.join(each.rule.value for each in item.unmet)}: {HOW_TO_ANSWER}",
    )


def _denial_rows(
    denials: Sequence[tuple[int, RiskDenial]], room: int, detailed: bool
) -> tuple[list[schemas.DenialRow], bool]:
    """Return rows with as many failed rules each as there is room for, and whether all rules are shown."""
    rows: list[schemas.DenialRow] = []
    for most in _FAILURES if detailed else _FAILURES[-1:]:
        rows = [_denial_row(index, item, most, detailed=detailed) for index, item in denials]
        if sum(len(row.model_dump_json()) for row in rows) <= room:
            break
    return rows, all(len(row.failures) == len(item.failures) for row, (_, item) in zip(rows, denials, strict=True))


def _denial_row(index: int, denial: RiskDenial, most: int, *, detailed: bool) -> schemas.DenialRow:
    nearest = denial.nearest_legal if detailed else None
    return schemas.DenialRow(
        index=index,
        order=order_row(denial.order),
        failures=[rule_row(failure) for failure in denial.failures[:most]],
        nearest_legal=None if nearest is None else order_row(nearest),
    )


def _position(cursor: str | None) -> _Position:
    if cursor is None:
        return _Position(0, 0)
    ids, _, denials = cursor.partition(".")
    if not (ids.isdecimal() and denials.isdecimal() and len(cursor) <= 7):
        raise InvalidValue("is not a cursor of this answer", code="INVALID_CURSOR")
    return _Position(int(ids), int(denials))


def exposure_page(
    found: schemas.Exposures, scope: str | None, *, cursor: str | None, limit: int
) -> tuple[schemas.Exposures, Page[schemas.ExposureRow]]:
    """Return exposure with one page of its instruments, in the order of their symbols.

    Args:
        found: of everything asked for.
        scope: with a symbol its row is given even when nothing is held or promised; otherwise such rows are left out.
        cursor: the last symbol of the page before.
        limit: rows at most.
    """
    single = scope is not None and scope != "desk"
    rows = sorted(
        (row for row in found.instruments if single or row.held or row.open_buys or row.open_sells),
        key=lambda row: row.symbol,
    )
    if cursor is not None:
        rows = [row for row in rows if row.symbol > cursor]
    page = fit(rows, limit=limit, cursor_of=lambda row: row.symbol, max_chars=_ROOM - _AGENTS_MAX * 100)
    return found.model_copy(update={"instruments": page.rows, "by_agent": _largest(found.by_agent)}), page


def _largest(by_agent: dict[str, Decimal]) -> dict[str, Decimal]:
    if len(by_agent) <= _AGENTS_MAX:
        return by_agent
    ordered = sorted(by_agent.items(), key=lambda item: (-item[1], item[0]))
    rest = ZERO
    for _, amount in ordered[_AGENTS_MAX - 1 :]:
        rest = add(rest, amount)
    return {**dict(ordered[: _AGENTS_MAX - 1]), _OTHERS: rest}

"""Walks forward through the recordings, compares procedures on time they never saw, and says which one ships.

Rules kept here:

- In each fold every procedure learns from rows before the test slice only, with purge and embargo (``samples.GAP_H``).
  Baselines learn from all of them; candidates train on the first two thirds and calibrate on the last.
- The best baseline is the one with the lowest Brier score over all folds, chosen in hindsight, to a candidate's harm.
- A candidate ships only if the whole bootstrap interval of its improvement on that baseline lies above zero; else the
  baseline does. What ships is fitted anew on everything up to the last hour that all assets share.
- Recordings that go on longer than the shortest one are the hold-out: no procedure and no choice ever sees them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trading.domain.errors import ConfigurationError

from .bars import Bars, Column, digest_of
from .evaluation import Coverage, Interval, Quality, block_bootstrap, coverage, implied_level, quality
from .features import HORIZON_H
from .model import ScoreModel
from .samples import GAP_H, Samples, samples_of
from .training import BASELINES, CANDIDATES, REFERENCES, Fitted, Origin, Procedure, moment

#: Probability of the fall whose coverage is tested.
LEVEL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """How to walk.

    Attributes:
        first_days: of history before the first test slice.  test_days: length of a test slice.
        block_h: of the bootstrap, at least twice the horizon.  draws: of the bootstrap.
    """

    first_days: int = 335
    test_days: int = 91
    block_h: int = 168
    draws: int = 2_000
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Fold:
    """One test slice: when, how many rows, how often the event came, and the Brier score of each procedure."""

    start: str
    end: str
    learned: int
    rows: int
    rate: float
    brier: dict[str, float]


@dataclass(frozen=True, slots=True)
class Study:
    """Everything a model card says.

    Attributes:
        quality: over all test slices, by procedure.
        gain: Brier of the best baseline less that of each candidate; of climatology less that of each baseline.
        coverage: of the shipped procedure's fall at ``LEVEL``, by asset, one forecast a day.
        chosen: the procedure that ships.  best_baseline, best_candidate: by Brier score.
        drifted: share of test rows that the shipped procedure would have refused to score, and how often the event
            came among them (None without any).
        hold_out: quality of what ships on rows nobody saw, with climatology's beside it; None without any.
    """

    plan: Plan
    origin: Origin
    assets: tuple[str, ...]
    names: tuple[str, ...]
    rows: int
    first: str
    last: str
    rate: dict[str, float]
    folds: list[Fold]
    quality: dict[str, Quality]
    gain: dict[str, Interval]
    coverage: dict[str, Coverage]
    best_baseline: str
    best_candidate: str
    chosen: str
    model: ScoreModel
    drifted: tuple[float, float | None]
    hold_out: tuple[str, Quality, Quality] | None


def study(bars: Sequence[Bars], plan: Plan) -> Study:
    """Return the comparison and what ships.

    Raises:
        ConfigurationError: too little history, or scikit-learn is missing.
    """
    origin = Origin(digest_of(bars), all(item.whole for item in bars), plan.seed)
    everything = samples_of(bars)
    common = everything.between(0, everything.last_common + 1)
    folds, tested, said, drifted = _walk(common, origin, plan)
    found = {name: quality(column, tested.came) for name, column in said.items()}
    baseline = min(BASELINES, key=lambda name: found[name].brier)
    candidate = min(CANDIDATES, key=lambda name: found[name].brier)
    gain = _gains(tested, said, baseline, plan)
    winners = [name for name in CANDIDATES if name not in REFERENCES and gain[name].positive]
    chosen = min(winners, key=lambda name: found[name].brier) if winners else baseline
    procedure = {**BASELINES, **CANDIDATES}[chosen]
    model = procedure(common, origin).model
    assert model is not None, "what ships has a plain form"
    refused = drifted[chosen]
    return Study(
        plan=plan,
        origin=origin,
        assets=everything.assets,
        names=everything.names,
        rows=len(common.hours),
        first=moment(int(common.hours.min())),
        last=moment(int(common.hours.max())),
        rate={
            asset: float(common.came[common.asset == number].mean()) for number, asset in enumerate(everything.assets)
        },
        folds=folds,
        quality=found,
        gain=gain,
        coverage=_coverage(tested, said[chosen]),
        best_baseline=baseline,
        best_candidate=candidate,
        chosen=chosen,
        model=model,
        drifted=(float(refused.mean()), float(tested.came[refused > 0].mean()) if refused.any() else None),
        hold_out=_hold_out(everything, common, origin, procedure),
    )


def _walk(
    common: Samples, origin: Origin, plan: Plan
) -> tuple[list[Fold], Samples, dict[str, Column], dict[str, Column]]:
    """Return the folds, all test rows, each procedure's probabilities of them, and which rows it would refuse."""
    procedures = {**BASELINES, **CANDIDATES}
    first, last = int(common.hours.min()), int(common.hours.max())
    starts = range(first + plan.first_days * 24, last - plan.test_days * 12, plan.test_days * 24)
    if not starts:
        raise ConfigurationError(
            f"too little history: {last - first} hours, needs {plan.first_days + plan.test_days} days"
        )
    folds: list[Fold] = []
    tested = np.zeros(len(common.hours), dtype=np.bool_)
    said = {name: np.full(len(tested), np.nan) for name in procedures}
    refused = {name: np.zeros(len(tested)) for name in procedures}
    for start in starts:
        inside = (common.hours >= start) & (common.hours < start + plan.test_days * 24)
        learned, rows = common.before(start), common.where(inside)
        if len(rows.hours) == 0:
            continue
        tested |= inside
        for name, procedure in procedures.items():
            fitted = procedure(learned, origin)
            said[name][inside] = fitted.foretell(rows)
            refused[name][inside] = _refused(fitted, rows)
        brier = {name: float(np.mean((said[name][inside] - rows.came) ** 2)) for name in procedures}
        end = int(rows.hours.max())
        folds.append(
            Fold(moment(start), moment(end), len(learned.hours), len(rows.hours), float(rows.came.mean()), brier)
        )
    return (
        folds,
        common.where(tested),
        {name: column[tested] for name, column in said.items()},
        {name: column[tested] for name, column in refused.items()},
    )


def _refused(fitted: Fitted, rows: Samples) -> Column:
    """Return 1 where a desk would take the features for drifted (``ScoreModel.problem``), else 0."""
    found = np.zeros(len(rows.hours))
    for term in fitted.model.terms if fitted.model is not None else ():
        column = rows.matrix[:, rows.names.index(term.name)]
        found[(column < term.low) | (column > term.high)] = 1.0
    return found


def _gains(tested: Samples, said: Mapping[str, Column], baseline: str, plan: Plan) -> dict[str, Interval]:
    block = max(plan.block_h, GAP_H)
    errors = {name: (column - tested.came) ** 2 for name, column in said.items()}

    def over(reference: str, name: str) -> Interval:
        return block_bootstrap(
            errors[reference] - errors[name], tested.hours, block=block, draws=plan.draws, seed=plan.seed
        )

    found = {name: over("climatology", name) for name in BASELINES if name != "climatology"}
    return found | {name: over(baseline, name) for name in CANDIDATES}


def _coverage(tested: Samples, said: Column) -> dict[str, Coverage]:
    """Test the implied fall on one forecast a day, so that outcomes do not overlap."""
    passed = tested.fall > implied_level(said, tested.budget, LEVEL)
    daily = tested.hours % HORIZON_H == 0
    return {
        asset: coverage(passed[daily & (tested.asset == number)], LEVEL) for number, asset in enumerate(tested.assets)
    }


def _hold_out(
    everything: Samples, common: Samples, origin: Origin, procedure: Procedure
) -> tuple[str, Quality, Quality] | None:
    rows = everything.where(everything.hours > everything.last_common + GAP_H)
    if len(rows.hours) == 0:
        return None
    whose = ", ".join(sorted({everything.assets[int(number)] for number in np.unique(rows.asset)}))
    label = f"{whose}, {moment(int(rows.hours.min()))[:10]}..{moment(int(rows.hours.max()))[:10]}"
    shipped, plain = procedure(common, origin), BASELINES["climatology"](common, origin)
    return label, quality(shipped.foretell(rows), rows.came), quality(plain.foretell(rows), rows.came)

"""The model card: what the score means, what it was compared with, and what was found, whatever that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from textwrap import fill
from typing import Final

from .evaluation import Bin, Coverage, Interval, Quality
from .samples import GAP_H
from .study import LEVEL, Study
from .training import BASELINES, CANDIDATES, REFERENCES

_WHAT: Final = {
    "climatology": "the rate of the event so far",
    "ewma_normal": "normal moves with the day's exponentially weighted deviation, reflection principle; nothing fitted",
    "logistic_vol": "logistic regression on the day's volatility over the month's, alone",
    "logistic_vol_later": "the same, trained on two thirds, calibrated on the later third (Platt)",
    "logistic_all": "logistic regression on every feature, calibrated on the later third (Platt)",
    "logistic_isotonic": "the same, isotonic calibration",
    "boosted": "gradient boosted trees on every feature, calibrated (Platt); a reference, cannot ship",
}


def card_json(found: Study) -> str:
    """Return everything the study found, as JSON."""
    content = asdict(found)
    content["model"] = {"digest": found.model.digest, **json.loads(found.model.to_json())}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def card_text(found: Study, *, shipped: str) -> str:
    """Return the card as Markdown.

    Args:
        found: the study.
        shipped: digest of the model that ships with the room, to say whether it is this one.
    """
    return "\n".join([
        *_head(found, shipped),
        *_verdict(found),
        *_scores(found),
        *_curves(found),
        *_coverage(found),
        *_folds(found),
        *_hold_out(found),
        *_limits(found),
    ]) + "\n"  # fmt: skip


def _prose(*sentences: str, mark: str = "") -> str:
    return fill(
        " ".join(sentences), 118, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False
    )


def _head(found: Study, shipped: str) -> list[str]:
    model = found.model
    rates = ", ".join(f"{asset} {rate:.1%}" for asset, rate in found.rate.items())
    same = "It ships with the room." if model.digest == shipped else "It is not the model that ships with the room."
    return [
        f"# Model card: risk score `{model.version}`",
        "",
        _prose("Made by `grekko risk evaluate`; do not edit. Model digest", f"`{model.digest}`.", same),
        "",
        "## What the score says",
        _prose(
            f"The probability that {model.event}. The budget is 1.645 times the deviation of 24 hours as the last 720",
            "hourly returns give it. It speaks of a long position, at the close of an hour, with no opinion",
            "on direction.",
        ),
        "",
        _prose(
            f"How often it came: {rates}. A random walk with steady volatility would do it in 10 % of all",
            "days, so it is",
            "neither rare nor usual; and because the budget is the month's, knowing the present day's",
            "volatility helps.",
            "Against the present day's own budget nothing that is known of volatility could foretell anything.",
            mark="- ",
        ),
        _prose(
            "A missing, old or drifted feature is not guessed: the score is then 1, with the reason.",
            mark="- ",
        ),
        _prose(
            "It can only tighten: `score_max` denies orders that add risk, `score_notional_max` shrinks them.",
            "Exits pass.",
            mark="- ",
        ),
        "",
        "## Data",
        _prose(
            f"{', '.join(found.assets)}, hourly, {found.first} to {found.last}: {found.rows} rows. Their",
            "outcomes overlap (24",
            f"to a day and asset) and the assets move together, so this is the evidence of {found.rows // 24}",
            "days at most.",
            f"SHA-256 of the bars `{found.origin.data}`, seed {found.origin.seed}.",
        ),
        "",
        _prose(f"Features, all known at the close: {', '.join(f'`{name}`' for name in found.names)}."),
        "",
    ]


def _verdict(found: Study) -> list[str]:
    if found.chosen in BASELINES:
        best, gain = found.best_candidate, found.gain[found.best_candidate]
        said = _prose(
            f"**The baseline `{found.chosen}` ships.** No candidate that could ship is better with",
            "confidence. The best",
            f"candidate, `{best}`, changes its Brier score by {_interval(gain)} (positive is better):",
            "the interval contains 0." if gain.low <= 0 <= gain.high else "the interval does not contain 0.",
        )
    else:
        said = _prose(
            f"**`{found.chosen}` ships.** It improves on the Brier score of the best baseline,",
            f"`{found.best_baseline}`,",
            f"by {_interval(found.gain[found.chosen])}: the interval does not contain 0.",
        )
    lines = ["## Verdict", said]
    if any(found.gain[name].positive for name in REFERENCES):
        lines.append("A reference that has no plain form was better with confidence: there is something left to win.")
    if found.best_baseline != "climatology":
        over = found.gain[found.best_baseline]
        lines += [
            "",
            _prose(
                f"`{found.best_baseline}` improves on climatology by {_interval(over)}; the interval",
                "does not contain 0." if over.positive else "contains 0: its skill is not proved.",
                f"Its skill is {_skill(found, found.best_baseline):.1%}: it warns, it does not foretell.",
            ),
        ]
    return [*lines, ""]


def _scores(found: Study) -> list[str]:
    lines = [
        "## Scores over all test slices",
        _prose(
            f"Walk-forward, {len(found.folds)} slices of {found.plan.test_days} days; {GAP_H} hours are left",
            "out between slices",
            "(24 purge, 24 embargo).",
        ),
        "",
        "| procedure | what it is | Brier | skill | log loss | AUPRC | ECE | said | came |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (*BASELINES, *CANDIDATES):
        item = found.quality[name]
        lines.append(
            f"| `{name}` | {_WHAT[name]} | {item.brier:.5f} | {_skill(found, name):.1%} | {item.log_loss:.4f} |"
            f" {item.auprc:.3f} | {item.ece:.4f} | {item.said:.1%} | {item.came:.1%} |"
        )
    lines += [
        "",
        _prose(
            "Improvement in Brier score with its 95 % interval by the circular block bootstrap (blocks of",
            f"{found.plan.block_h} hours, all assets of an hour together, {found.plan.draws} draws):",
        ),
        "",
        "| procedure | over | interval |",
        "|---|---|---|",
    ]
    for name, gain in found.gain.items():
        lines.append(
            f"| `{name}` | `{'climatology' if name in BASELINES else found.best_baseline}` | {_interval(gain)} |"
        )
    return [*lines, ""]


def _curves(found: Study) -> list[str]:
    return [f"## Reliability of `{found.chosen}`", *_bins(found.quality[found.chosen].bins), ""]


def _bins(bins: Sequence[Bin]) -> list[str]:
    rows = [f"| {item.low:.1%} to {item.high:.1%} | {item.n} | {item.said:.1%} | {item.came:.1%} |" for item in bins]
    return ["| forecast | n | said | came |", "|---|---|---|---|", *rows]


def _coverage(found: Study) -> list[str]:
    refuted = [asset for asset, item in found.coverage.items() if item.pof_p < 0.05]
    word = "Kupiec's test refutes it for no asset."
    if refuted:
        word = f"Kupiec's test refutes it for {', '.join(refuted)}: **do not read another quantile into this score.**"
    return [
        f"## Coverage of the fall it implies at {LEVEL:.0%}",
        _prose(
            "One forecast a day (00:00 UTC). The fall is that of a random walk which has the stated",
            "probability of the event.",
            word,
        ),
        "",
        "| asset | n | passed | rate | Kupiec LR (p) | independence LR (p) | conditional LR (p) |",
        "|---|---|---|---|---|---|---|",
        *[_covered(asset, item) for asset, item in found.coverage.items()],
        "",
    ]


def _covered(asset: str, item: Coverage) -> str:
    return (
        f"| {asset} | {item.n} | {item.passes} | {item.passes / item.n:.1%} | {item.pof:.2f} ({item.pof_p:.3f}) |"
        f" {item.independence:.2f} ({item.independence_p:.3f}) | {item.conditional:.2f} ({item.conditional_p:.3f}) |"
    )


def _folds(found: Study) -> list[str]:
    names = ("climatology", "ewma_normal", "logistic_vol", found.best_candidate)
    lines = [
        "## Slice by slice, Brier score",
        f"| from | to | learned from | rows | rate | {' | '.join(f'`{name}`' for name in names)} |",
        f"|---|---|---|---|---|{'---|' * len(names)}",
    ]
    for fold in found.folds:
        scores = " | ".join(f"{fold.brier[name]:.4f}" for name in names)
        lines.append(
            f"| {fold.start[:10]} | {fold.end[:10]} | {fold.learned} | {fold.rows} | {fold.rate:.1%} | {scores} |"
        )
    return [*lines, ""]


def _hold_out(found: Study) -> list[str]:
    if found.hold_out is None:
        return []
    label, shipped, plain = found.hold_out
    return [
        "## Hold-out",
        _prose(
            f"{label}: {shipped.n} rows that neither a procedure nor the choice among them saw. Brier",
            f"{shipped.brier:.5f},",
            f"climatology {plain.brier:.5f}, skill {1 - shipped.brier / plain.brier:.1%}, ECE {shipped.ece:.4f}.",
        ),
        "",
        *_bins(shipped.bins),
        "",
    ]


def _limits(found: Study) -> list[str]:
    share, rate = found.drifted
    among = "" if rate is None else f"; the event came in {rate:.1%} of them"
    said = (
        f"{share:.2%} of the test rows lay outside what training had seen and would have scored 1{among}.",
        "Four large assets against USDT on one venue, in years that may not come again: prices, no news, no books.",
        "What stops a desk from losing is its limits. The score warns within them.",
        "Baselines are not calibrated a second time: the curves above measure them on later slices as they are.",
        "A first look at the same recordings shaped features and slices; the hold-out, if any, was seen by nobody.",
    )
    return ["## Limits", *[_prose(each, mark="- ") for each in said]]


def _skill(found: Study, name: str) -> float:
    return 1 - found.quality[name].brier / found.quality["climatology"].brier


def _interval(gain: Interval) -> str:
    return f"{gain.mean:+.5f} [{gain.low:+.5f}, {gain.high:+.5f}]"


def summary(found: Study) -> list[str]:
    """Return the few lines that a terminal shows."""
    chosen: Quality = found.quality[found.chosen]
    return [
        f"ships: {found.model.version} ({'baseline' if found.chosen in BASELINES else 'candidate'})",
        f"event: {found.model.event}",
        f"out of sample: Brier {chosen.brier:.5f}, skill {_skill(found, found.chosen):.1%}, ECE {chosen.ece:.4f}",
        *[
            f"{name} over {'climatology' if name in BASELINES else found.best_baseline}: {_interval(gain)}"
            for name, gain in found.gain.items()
        ],
    ]

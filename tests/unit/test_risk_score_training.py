"""The risk score's features, training and evaluation: nothing from the future, the same bytes twice, known figures."""

from __future__ import annotations

import gzip
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
from scipy.special import xlogy
from scipy.stats import chi2, norm
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss
from typer.testing import CliRunner

from mcp_servers.risk.score.bars import Bars, digest_of, on_grid, read_bars
from mcp_servers.risk.score.card import card_json, card_text
from mcp_servers.risk.score.evaluation import block_bootstrap, coverage, implied_level, quality, reliability
from mcp_servers.risk.score.features import (
    BUDGET_Z,
    CLOSE_FEATURES,
    FEATURES,
    HORIZON_H,
    LOOKBACK,
    falls_after,
    past_of,
)
from mcp_servers.risk.score.model import Calibration, load_model, read_model, shipped_model
from mcp_servers.risk.score.samples import GAP_H, Samples, samples_of
from mcp_servers.risk.score.study import Plan, study
from mcp_servers.risk.score.training import (
    BASELINES,
    CANDIDATES,
    Origin,
    boosted,
    logistic_all,
    logistic_isotonic,
    logistic_vol,
    normal,
)
from trading.domain.errors import ConfigurationError

ORIGIN = Origin("0" * 64, True, 1)
FAST = Plan(first_days=70, test_days=20, draws=200)


def whole_bars(count: int = 4_000, *, seed: int = 5, asset: str = "BTC") -> Bars:
    """Bars of a market whose volatility comes in spells, so that there is something to learn."""
    random = np.random.default_rng(seed)
    spells = np.repeat(random.choice([0.4, 1.0, 2.2], count // 50 + 1), 50)[:count]
    moves = random.standard_t(4, count) * 0.005 * spells
    close = 100 * np.exp(np.cumsum(moves))
    reach = np.abs(random.normal(0, 0.003, (2, count))) * spells
    volume = random.lognormal(3, 0.5, count) * spells
    columns = np.column_stack((close, close * np.exp(-reach[0]), close * np.exp(reach[1]), volume))
    return on_grid(asset, np.arange(420_000, 420_000 + count), columns)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return samples_of([whole_bars(), whole_bars(seed=6, asset="ETH")])


# -- features: the past alone ----------------------------------------------------------------------------------------


def test_changing_the_future_changes_no_feature() -> None:
    bars, now = whole_bars(1_200), 1_000
    later = np.arange(len(bars.close)) > now
    changed = replace(
        bars,
        close=np.where(later, bars.close * 3, bars.close),
        low=np.where(later, bars.low * 0.1, bars.low),
        high=np.where(later, bars.high * 9, bars.high),
        volume=np.where(later, 1e9, bars.volume),
    )
    before, after = past_of(bars), past_of(changed)
    assert np.array_equal(before.matrix[: now + 1], after.matrix[: now + 1], equal_nan=True)
    assert np.array_equal(before.budget[: now + 1], after.budget[: now + 1], equal_nan=True)
    assert np.isfinite(before.matrix[now]).all()
    assert not np.array_equal(before.matrix[now + 1], after.matrix[now + 1])  # and it does see what it may see


def test_a_desk_that_keeps_the_lookback_computes_what_training_computed() -> None:
    bars = whole_bars(1_500)
    recent = Bars("BTC", bars.first_hour + 1_500 - LOOKBACK, *(
        column[-LOOKBACK:] for column in (bars.close, bars.low, bars.high, bars.volume)
    ))  # fmt: skip
    np.testing.assert_allclose(past_of(recent).matrix[-1], past_of(bars).matrix[-1], rtol=1e-9, atol=1e-9)
    assert np.isnan(past_of(bars.until(LOOKBACK - 50)).matrix).any(axis=1).all()  # less than that is not guessed


def test_features_mean_the_same_for_a_market_that_moves_twice_as_much() -> None:
    bars = whole_bars(900)
    wild = replace(bars, close=bars.close**2, low=bars.low**2, high=bars.high**2)
    one, two = past_of(bars).matrix[-1], past_of(wild).matrix[-1]
    same = [number for number, name in enumerate(FEATURES) if name not in ("level", "close_location_24h")]
    np.testing.assert_allclose(one[same], two[same], rtol=1e-9)
    assert two[FEATURES.index("level")] - one[FEATURES.index("level")] == pytest.approx(log(2))


def test_a_hole_in_the_past_is_no_feature_and_an_outage_of_a_few_hours_is_bridged() -> None:
    bars = whole_bars(800)
    hours = np.arange(len(bars.close))

    def without(kept: np.ndarray) -> np.ndarray:
        columns = np.column_stack((bars.close, bars.low, bars.high, bars.volume))[kept]
        return past_of(on_grid("BTC", hours[kept], columns)).matrix[-1]

    assert np.isfinite(without((hours < 500) | (hours > 505))).all()
    assert np.isnan(without((hours < 500) | (hours > 540))).all()


def test_the_fall_is_the_worst_low_of_the_next_day_and_of_no_other_hour() -> None:
    close = np.full(100, 100.0)
    low = close.copy()
    low[50] = 90.0
    low[10] = 80.0
    fall = falls_after(Bars("BTC", 0, close, low, close, close))
    struck = np.flatnonzero(fall[11:] > 0) + 11
    assert struck.tolist() == list(range(26, 50))  # hours 26 to 49 have hour 50 within their next 24
    assert fall[30] == pytest.approx(log(100 / 90))
    assert np.isnan(fall[-HORIZON_H:]).all()


def test_the_budget_is_the_quantile_of_a_day_at_the_months_deviation() -> None:
    bars = whole_bars(900)
    returns = np.diff(np.log(bars.close))[-720:]
    expected = norm.ppf(0.95) * np.sqrt(np.mean(returns**2)) * np.sqrt(24)
    assert past_of(bars).budget[-1] == pytest.approx(expected, rel=1e-12)


def test_slices_are_purged_and_embargoed(samples: Samples) -> None:
    start = int(np.median(samples.hours))
    assert samples.before(start).hours.max() + HORIZON_H + 24 <= start
    assert GAP_H == 48
    assert samples.between(start, start + 10).hours.min() == start


# -- models: what is written is what scikit-learn says ---------------------------------------------------------------


def test_the_written_logistic_model_says_what_scikit_learn_says(samples: Samples) -> None:
    fitted = logistic_vol(samples, ORIGIN)
    assert fitted.model is not None
    (term,) = fitted.model.terms
    column = samples.matrix[:, [samples.names.index("vol_24h")]]
    scaled = (column - column.mean()) / column.std()
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=1_000).fit(scaled, samples.came).predict_proba(scaled)[:, 1]
    written = read_model(fitted.model.to_json())
    ours = [written.probability({"vol_24h": value}) for value in column[:, 0].tolist()]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert term.coefficient > 0


def test_the_written_platt_calibration_says_what_scikit_learn_says(samples: Samples) -> None:
    fitted = logistic_all(samples, ORIGIN)
    assert fitted.model is not None
    model = read_model(fitted.model.to_json())
    start = int(samples.hours.max()) - int((samples.hours.max() - samples.hours.min()) / 3)
    earlier, later = samples.before(start), samples.between(start, int(samples.hours.max()) + 1)
    mean, scale = earlier.matrix.mean(axis=0), earlier.matrix.std(axis=0)
    raw = LogisticRegression(C=1.0, tol=1e-8, max_iter=1_000).fit((earlier.matrix - mean) / scale, earlier.came)
    logits = raw.decision_function((later.matrix - mean) / scale)[:, np.newaxis]
    platt = LogisticRegression(C=1e6, tol=1e-8, max_iter=1_000).fit(logits, later.came)
    np.testing.assert_allclose(
        [model.probability(dict(zip(samples.names, row, strict=True))) for row in later.matrix.tolist()],
        platt.predict_proba(logits)[:, 1],
        rtol=0,
        atol=1e-9,
    )
    assert later.hours.min() - earlier.hours.max() > GAP_H  # calibrated later than trained, with a gap


def test_the_written_isotonic_calibration_says_what_scikit_learn_says(samples: Samples) -> None:
    fitted = logistic_isotonic(samples, ORIGIN)
    assert fitted.model is not None
    knots = fitted.model.calibration.knots
    assert len(knots) > 2
    theirs = IsotonicRegression(out_of_bounds="clip").fit([x for x, _ in knots], [y for _, y in knots])
    wanted = np.linspace(0, 1, 997)
    ours = [Calibration(knots=knots).apply(value) for value in wanted.tolist()]
    np.testing.assert_allclose(ours, theirs.predict(wanted), rtol=0, atol=1e-9)
    assert all(first <= second for first, second in pairwise(ours))


def test_isotonic_knots_are_those_of_a_calibrated_classifier(samples: Samples) -> None:
    fitted = logistic_isotonic(samples, ORIGIN)
    assert fitted.model is not None
    start = int(samples.hours.max()) - int((samples.hours.max() - samples.hours.min()) / 3)
    earlier, later = samples.before(start), samples.between(start, int(samples.hours.max()) + 1)
    mean, scale = earlier.matrix.mean(axis=0), earlier.matrix.std(axis=0)
    raw = LogisticRegression(C=1.0, tol=1e-8, max_iter=1_000).fit((earlier.matrix - mean) / scale, earlier.came)
    theirs = CalibratedClassifierCV(FrozenEstimator(raw), method="isotonic", ensemble="auto")
    theirs.fit((later.matrix - mean) / scale, later.came)
    # Theirs maps logits and ours probabilities: the same steps at the rows themselves, other lines between them.
    np.testing.assert_allclose(
        fitted.foretell(later), theirs.predict_proba((later.matrix - mean) / scale)[:, 1], rtol=0, atol=1e-9
    )


def test_the_normal_baseline_is_twice_the_tail_of_the_present_deviation(samples: Samples) -> None:
    fitted = normal(samples, ORIGIN)
    assert fitted.model is not None
    for ratio in (0.5, 1.0, 2.0):
        said = fitted.model.probability({"vol_24h": log(ratio)})
        assert said == pytest.approx(2 * norm.sf(BUDGET_Z / ratio), abs=1e-12)


def test_every_model_survives_its_file_and_a_changed_digit_changes_its_digest(samples: Samples) -> None:
    for procedure in {**BASELINES, **CANDIDATES}.values():
        fitted = procedure(samples, ORIGIN)
        assert (fitted.model is None) == (procedure is boosted)
        if fitted.model is not None:
            again = read_model(fitted.model.to_json())
            assert again == fitted.model
            assert again.digest == fitted.model.digest
            assert replace(again, intercept=again.intercept + 1e-9).digest != again.digest


@pytest.mark.parametrize(
    ("find", "put"),
    [
        ('"format": 1', '"format": 2'),
        ('"seed"', '"sede"'),
        ('"form": "logistic"', '"form": "constant"'),
        ('"intercept": -2', '"intercept": NaN, "x": -2'),
        ('"scale": 0', '"scale": -0'),
        ("{", ""),
    ],
)
def test_a_file_that_is_no_model_is_refused(find: str, put: str, tmp_path: Path) -> None:
    text = shipped_model().to_json()
    assert find in text
    (tmp_path / "model.json").write_text(text.replace(find, put), encoding="utf-8")
    with pytest.raises(ConfigurationError):
        load_model(tmp_path / "model.json")


def test_missing_and_drifted_features_give_no_probability() -> None:
    model = shipped_model()
    (term,) = model.terms
    assert model.problem({term.name: term.mean}) == ""
    assert "missing" in model.problem({})
    assert "missing" in model.problem({term.name: float("nan")})
    assert "drifted" in model.problem({term.name: term.high + 0.01})
    assert "drifted" in model.problem({term.name: term.low - 0.01})
    assert 0 < model.probability({term.name: term.low}) < model.probability({term.name: term.high}) < 1


# -- evaluation: against other people's figures ----------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    said = np.round(random.beta(1, 8, 3_000), 2)  # rounded, so that some tie
    came = (random.random(3_000) < said).astype(np.float64)
    found = quality(said, came)
    assert found.brier == pytest.approx(brier_score_loss(came, said), abs=1e-12)
    assert found.log_loss == pytest.approx(log_loss(came, np.clip(said, 1e-6, 1 - 1e-6)), abs=1e-12)
    assert found.auprc == pytest.approx(average_precision_score(came, said), abs=1e-12)
    assert sum(item.n for item in found.bins) == 3_000


def test_reliability_bins_hold_what_was_said_and_what_came() -> None:
    said = np.array([0.01, 0.02, 0.3, 0.4, 1.0])
    came = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    found = reliability(said, came)
    assert [(item.n, item.came) for item in found] == [(2, 0.5), (2, 0.5), (1, 1.0)]
    assert quality(said, came).ece == pytest.approx((2 * abs(0.015 - 0.5) + 2 * abs(0.35 - 0.5) + 0) / 5)


def test_kupiec_gives_the_figures_that_are_printed_in_textbooks() -> None:
    # 250 days at 99 %: accepted at 95 % up to six passes (Kupiec 1995, Jorion 2007 table 6-2: N < 7).
    found = {passes: coverage(np.arange(250) < passes, 0.01) for passes in (0, 4, 6, 7)}
    assert found[4].pof == pytest.approx(0.7691, abs=1e-4)
    assert found[0].pof == pytest.approx(-2 * 250 * log(0.99), abs=1e-12)
    assert found[6].pof < chi2.ppf(0.95, 1) < found[7].pof
    assert found[4].pof_p == pytest.approx(chi2.sf(found[4].pof, 1), abs=1e-12)


def test_christoffersen_agrees_with_the_formula_written_out_another_way() -> None:
    passed = np.random.default_rng(8).random(500) < 0.06
    passed[100:106] = True  # a cluster
    found = coverage(passed, 0.05)
    table = np.zeros((2, 2))
    np.add.at(table, (passed[:-1].astype(int), passed[1:].astype(int)), 1)
    by_row = xlogy(table, table / table.sum(axis=1, keepdims=True)).sum()
    pooled = xlogy(table.sum(axis=0), table.sum(axis=0) / table.sum()).sum()
    assert found.independence == pytest.approx(2 * (by_row - pooled), abs=1e-9)
    assert found.conditional == pytest.approx(found.pof + found.independence)
    assert found.conditional_p == pytest.approx(chi2.sf(found.conditional, 2), abs=1e-12)
    assert found.independence_p < 0.05  # the cluster is seen
    spread = coverage(np.arange(500) % 20 == 0, 0.05)
    assert spread.pof == pytest.approx(0, abs=1e-9)


def test_the_implied_fall_of_the_events_own_probability_is_the_budget() -> None:
    budget = np.array([0.05, 0.08])
    np.testing.assert_allclose(implied_level(np.array([0.05, 0.05]), budget, 0.05), budget)
    assert (implied_level(np.array([0.2, 0.2]), budget, 0.05) > budget).all()


def test_the_bootstrap_finds_a_difference_only_where_there_is_one() -> None:
    random = np.random.default_rng(4)
    hours = np.repeat(np.arange(2_000), 2)
    noise = np.repeat(random.normal(0, 1, 2_000), 2)
    none = block_bootstrap(noise - noise.mean(), hours, block=48, draws=500)
    some = block_bootstrap(noise + 0.5, hours, block=48, draws=500)
    assert none.low < 0 < none.high
    assert not none.positive
    assert some.positive
    assert some.mean == pytest.approx(float(noise.mean() + 0.5))
    # Two assets that always agree are one: the interval is that of 2,000 hours, not of 4,000 rows.
    single = block_bootstrap(noise[::2] - noise.mean(), hours[::2], block=48, draws=500)
    assert none.high - none.low == pytest.approx(single.high - single.low, rel=1e-9)


# -- the whole study -------------------------------------------------------------------------------------------------


def test_training_twice_gives_the_same_bytes_and_a_card_that_says_what_ships() -> None:
    bars = [item.until(2_900) for item in read_bars("bundled")[:2]]
    first, second = study(bars, FAST), study(bars, FAST)
    assert first.model.to_json() == second.model.to_json()
    assert card_json(first) == card_json(second)
    text = card_text(first, shipped=shipped_model().digest)
    assert text == card_text(second, shipped=shipped_model().digest)
    winners = [name for name in CANDIDATES if name != "boosted" and first.gain[name].low > 0]
    assert first.chosen in (winners or [first.best_baseline])
    assert f"`{first.chosen}` ships" in text
    assert first.model.data == digest_of(bars)
    assert "not the model that ships with the room" in text
    assert first.names == CLOSE_FEATURES  # closes alone know no ranges and no volumes


def test_a_study_of_whole_bars_keeps_what_goes_on_longer_as_a_hold_out() -> None:
    found = study([whole_bars(3_000), whole_bars(3_700, seed=6, asset="XRP")], FAST)
    assert found.hold_out is not None
    label, shipped, plain = found.hold_out
    assert label.startswith("XRP, ")
    assert shipped.n == plain.n == 700 - GAP_H
    assert found.names == FEATURES
    assert "## Hold-out" in card_text(found, shipped="")


def test_too_little_history_is_refused_in_words() -> None:
    with pytest.raises(ConfigurationError, match="too few hourly bars"):
        study([whole_bars(600)], FAST)
    with pytest.raises(ConfigurationError, match="too little history"):
        study([whole_bars(1_000)], FAST)


def test_the_card_in_the_docs_is_of_the_model_that_ships() -> None:
    card = Path(__file__).parents[2] / "docs" / "model-cards" / "risk-score.md"
    text, model = card.read_text(encoding="utf-8"), shipped_model()
    assert model.digest in text
    assert model.data in text
    assert "It ships with the room." in text
    assert model.event in " ".join(text.split())


def test_the_command_reads_a_folder_and_writes_model_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grekko import risk_commands
    from mcp_servers.risk.score import study as module

    bars, lines = whole_bars(2_900), ["ts,open,high,low,close,volume"]
    for hour, *row in zip(bars.hours, bars.high, bars.low, bars.close, bars.volume, strict=True):
        lines.append(",".join(map(str, (int(hour) * 3_600_000, row[2], *row))))
    (tmp_path / "ohlcv_1h_BTCUSDT_2020.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (read,) = read_bars(str(tmp_path))
    np.testing.assert_allclose(read.low, bars.low)
    original = module.Plan
    monkeypatch.setattr(module, "Plan", lambda seed: original(70, 20, draws=200, seed=seed))
    model, card = tmp_path / "model.json", tmp_path / "card.md"
    done = CliRunner().invoke(risk_commands.app, ["train", "--data", str(tmp_path), "--out", str(model)])
    assert done.exit_code == 0, done.output
    assert load_model(model).data == digest_of([read])
    done = CliRunner().invoke(risk_commands.app, ["evaluate", "--data", str(tmp_path), "--out", str(card)])
    assert done.exit_code == 0, done.output
    assert load_model(model).digest in card.read_text(encoding="utf-8")
    assert card.with_suffix(".json").is_file()


def test_an_empty_folder_and_a_broken_recording_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no hourly recordings"):
        read_bars(str(tmp_path))
    (tmp_path / "ohlcv_1h_BTCUSDT_2020.csv").write_text("ts\nnot a number\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="not a recording"):
        read_bars(str(tmp_path))


def test_scoring_never_loads_the_library_that_trained() -> None:
    program = (
        "import sys, mcp_servers.risk.server, mcp_servers.risk.score.features\n"
        "from mcp_servers.risk.score.model import shipped_model\n"
        "model = shipped_model()\n"
        "assert 0 < model.probability({term.name: term.mean for term in model.terms}) < 1\n"
        "assert not {'sklearn', 'scipy'} & set(sys.modules), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])

"""Fits models on samples. The only module that imports scikit-learn, and only when something is fitted."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import log
from typing import Any, Final

import numpy as np

from trading.domain.errors import ConfigurationError

from .bars import Column
from .features import BUDGET_Z
from .model import Calibration, Form, ScoreModel, Term
from .samples import GAP_H, Samples

VOLATILITY: Final = "vol_24h"
#: Of the rows that a calibrated procedure may see, the share that calibrates.
_CALIBRATING: Final = 1 / 3
_DIGITS: Final = 12
_AS_IT_IS: Final = Calibration()
#: Of each feature's rows, the share on either side that does not count as seen.
_BEYOND: Final = 0.001

EVENT_BY_LOWS: Final = "within 24 h the price falls below the last hourly close by more than the 95 % budget of 30 days"
EVENT_BY_CLOSES: Final = "within 24 h an hourly close lies below the last one by more than the 95 % budget of 30 days"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where samples come from: digest of the bars, whether they are whole, and the seed."""

    data: str
    whole: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """Something that foretells.

    Attributes:
        model: as it would ship; None for a reference that has no plain form.
        foretell: probabilities of rows, shape (n,).
    """

    model: ScoreModel | None
    foretell: Callable[[Samples], Column]


Procedure = Callable[[Samples, Origin], Fitted]


@lru_cache(maxsize=8)
def library(name: str) -> Any:
    """Return a module of scikit-learn, which has no types of its own.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(
            "training needs scikit-learn; scoring does not", suggestion="pip install 'grekko[ml]'"
        ) from error


def climatology(samples: Samples, origin: Origin) -> Fitted:
    """Say the same always: how often it came before."""
    rate = float(samples.came.mean())
    kept = min(max(rate, 1e-6), 1 - 1e-6)
    return _plain("climatology", "constant", samples, origin, intercept=log(kept / (1 - kept)))


def normal(samples: Samples, origin: Origin) -> Fitted:
    """Take the moves for normal with the exponentially weighted deviation of a day: nothing is fitted."""
    return _plain("ewma_normal", "reflection", samples, origin, names=(VOLATILITY,), coefficients=(BUDGET_Z,))


def logistic_vol(samples: Samples, origin: Origin) -> Fitted:
    """Fit a logistic regression on the day's volatility against the month's, alone."""
    return _regression("logistic_vol", (VOLATILITY,), samples, origin)


def logistic_vol_later(samples: Samples, origin: Origin) -> Fitted:
    """Fit the same on the earlier two thirds, and calibrate its logit on the later third (Platt)."""
    earlier, later = _split(samples)
    raw = _regression("logistic_vol_later", (VOLATILITY,), earlier, origin)
    return _calibrated(raw, "logistic_vol_later", samples, origin, _platt(raw.foretell(later), later.came))


def logistic_all(samples: Samples, origin: Origin) -> Fitted:
    """Fit a logistic regression on every feature, calibrated alike."""
    earlier, later = _split(samples)
    raw = _regression("logistic_all", samples.names, earlier, origin)
    return _calibrated(raw, "logistic_all", samples, origin, _platt(raw.foretell(later), later.came))


def logistic_isotonic(samples: Samples, origin: Origin) -> Fitted:
    """Do the same with a monotone step map instead."""
    earlier, later = _split(samples)
    raw = _regression("logistic_isotonic", samples.names, earlier, origin)
    fitted = library("sklearn.isotonic").IsotonicRegression(out_of_bounds="clip")
    _fit(fitted, raw.foretell(later), later.came)
    knots = tuple(
        (float(x), float(y)) for x, y in zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True)
    )
    return _calibrated(raw, "logistic_isotonic", samples, origin, Calibration(knots=knots))


def boosted(samples: Samples, origin: Origin) -> Fitted:
    """Fit gradient boosted trees on every feature, calibrated on the later third: a reference, it has no plain form."""
    earlier, later = _split(samples)
    trees = library("sklearn.ensemble").HistGradientBoostingClassifier(
        max_iter=80, learning_rate=0.05, max_depth=3, min_samples_leaf=500, random_state=origin.seed
    )
    _fit(trees, earlier.matrix, earlier.came)

    def raw(rows: Samples) -> Column:
        with library("threadpoolctl").threadpool_limits(1):
            return np.asarray(trees.predict_proba(rows.matrix)[:, 1], dtype=np.float64)

    calibration = _platt(raw(later), later.came)
    return Fitted(None, lambda rows: np.asarray([calibration.apply(each) for each in raw(rows).tolist()]))


#: What has no plain form and can therefore not ship, whatever it earns.
REFERENCES: Final = frozenset({"boosted"})
BASELINES: Final[Mapping[str, Procedure]] = {
    "climatology": climatology,
    "ewma_normal": normal,
    "logistic_vol": logistic_vol,
}
CANDIDATES: Final[Mapping[str, Procedure]] = {
    "logistic_vol_later": logistic_vol_later,
    "logistic_all": logistic_all,
    "logistic_isotonic": logistic_isotonic,
    "boosted": boosted,
}


def foretell(model: ScoreModel, rows: Samples) -> Column:
    """Return a model's probabilities, worked out as a desk does; drift is not asked for."""
    names = tuple(term.name for term in model.terms)
    columns = rows.matrix[:, [rows.names.index(name) for name in names]]
    return np.asarray([model.probability(dict(zip(names, row, strict=True))) for row in columns.tolist()])


def _fit(estimator: Any, matrix: Column, came: Column) -> Any:
    """Fit on one thread: more of them spin while a core is busy, and add up in another order."""
    with library("threadpoolctl").threadpool_limits(1):
        return estimator.fit(matrix, came)


def _split(samples: Samples) -> tuple[Samples, Samples]:
    """Return the earlier two thirds of the time and the later one, with purge and embargo between them."""
    first, last = int(samples.hours.min()), int(samples.hours.max())
    start = last - int((last - first) * _CALIBRATING)
    earlier, later = samples.before(start), samples.between(start, last + 1)
    if len(earlier.hours) == 0 or not 0 < earlier.came.sum() < len(earlier.came) or not later.came.any():
        raise ConfigurationError("too little history to train on one slice and calibrate on a later one")
    return earlier, later


def _regression(name: str, names: tuple[str, ...], samples: Samples, origin: Origin) -> Fitted:
    if not 0 < samples.came.sum() < len(samples.came):
        raise ConfigurationError("the event never came, or always did: there is nothing to learn")
    matrix = samples.matrix[:, [samples.names.index(each) for each in names]]
    mean, scale = matrix.mean(axis=0), matrix.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    fitted = library("sklearn.linear_model").LogisticRegression(C=1.0, tol=1e-8, max_iter=1_000)
    _fit(fitted, (matrix - mean) / scale, samples.came)
    return _plain(
        name,
        "logistic",
        samples,
        origin,
        names=names,
        intercept=float(fitted.intercept_[0]),
        coefficients=tuple(fitted.coef_[0].tolist()),
        means=tuple(mean.tolist()),
        scales=tuple(scale.tolist()),
    )


def _platt(raw: Column, came: Column) -> Calibration:
    kept = np.clip(raw, 1e-6, 1 - 1e-6)
    fitted = library("sklearn.linear_model").LogisticRegression(C=1e6, tol=1e-8, max_iter=1_000)
    _fit(fitted, np.log(kept / (1 - kept))[:, np.newaxis], came)
    # A falling map would turn the order round: what calibrates badly then says the rate alone.
    return Calibration(max(0.0, _short(fitted.coef_[0][0])), _short(fitted.intercept_[0]))


def _calibrated(raw: Fitted, name: str, samples: Samples, origin: Origin, calibration: Calibration) -> Fitted:
    assert raw.model is not None, "a regression has a plain form"
    return _plain(
        name,
        "logistic",
        samples,
        origin,
        names=tuple(term.name for term in raw.model.terms),
        intercept=raw.model.intercept,
        coefficients=tuple(term.coefficient for term in raw.model.terms),
        means=tuple(term.mean for term in raw.model.terms),
        scales=tuple(term.scale for term in raw.model.terms),
        calibration=calibration,
    )


def _plain(
    name: str,
    form: Form,
    samples: Samples,
    origin: Origin,
    *,
    names: tuple[str, ...] = (),
    intercept: float = 0.0,
    coefficients: tuple[float, ...] = (),
    means: tuple[float, ...] = (),
    scales: tuple[float, ...] = (),
    calibration: Calibration = _AS_IT_IS,
) -> Fitted:
    terms: list[Term] = []
    for number, (each, coefficient) in enumerate(zip(names, coefficients, strict=True)):
        column = samples.matrix[:, samples.names.index(each)]
        low, high = np.quantile(column, (_BEYOND, 1 - _BEYOND))
        mean, scale = (means[number], scales[number]) if means else (0.0, 1.0)
        terms.append(Term(each, _short(mean), _short(scale), _short(coefficient), _short(low), _short(high)))
    model = ScoreModel(
        name=name,
        form=form,
        event=EVENT_BY_LOWS if origin.whole else EVENT_BY_CLOSES,
        intercept=_short(intercept),
        terms=tuple(terms),
        calibration=calibration,
        trained_from=moment(int(samples.hours.min())),
        trained_to=moment(int(samples.hours.max())),
        rows=len(samples.hours),
        assets=samples.assets,
        data=origin.data,
        seed=origin.seed,
        versions={"numpy": np.__version__, "scikit-learn": str(library("sklearn").__version__), "gap_h": str(GAP_H)},
    )
    return Fitted(model, lambda rows: foretell(model, rows))


def moment(hour: int) -> str:
    """Return an hour since the epoch as ISO 8601."""
    return f"{datetime.fromtimestamp(hour * 3_600, UTC):%Y-%m-%dT%H:%MZ}"


def _short(value: float) -> float:
    return float(f"{float(value):.{_DIGITS}g}")

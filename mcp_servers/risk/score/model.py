"""The model file: plain numbers, evaluated in plain Python, so that a desk scores without the library that trained it.

Rules kept here:

- A feature that is missing, or outside the range training saw, gives no probability: the caller takes 1.
- The file says what it was made from: data, range of time, seed, versions. Its digest is its name.
- Three forms are enough: a constant (climatology), the reflection principle (a normal with the present deviation), and
  a logistic regression with an optional calibration that was fitted on a later slice.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import pairwise
from math import erfc, exp, isfinite, log, sqrt
from pathlib import Path
from typing import Any, Final, Literal, cast

from trading.domain.errors import ConfigurationError

FORMAT: Final = 1
Form = Literal["constant", "reflection", "logistic"]
_SHIPPED: Final = Path(__file__).with_name("model.json")
_LEAST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Term:
    """One feature of a model.

    Attributes:
        name: as in ``features.FEATURES``.
        mean, scale: of training; the model sees (value - mean) / scale.
        coefficient: of the logit, per scale.
        low, high: what training saw, all but a thousandth on each side; beyond them the feature has drifted.
    """

    name: str
    mean: float
    scale: float
    coefficient: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A monotone map from a raw probability to one that came true as often, fitted on a later slice.

    Attributes:
        slope, intercept: of the logit (Platt); 1 and 0 change nothing.
        knots: (raw, calibrated), rising, joined by straight lines after the logit map (isotonic); empty for none.
    """

    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def apply(self, raw: float) -> float:
        """Return the calibrated probability."""
        value = raw
        if (self.slope, self.intercept) != (1.0, 0.0):
            clipped = min(max(raw, _LEAST), 1 - _LEAST)
            value = _logistic(self.slope * log(clipped / (1 - clipped)) + self.intercept)
        return value if not self.knots else _between(self.knots, value)


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """One model.

    Attributes:
        name: of the procedure, such as ``logistic_vol``.
        form: how ``raw`` is worked out.
        event: what the probability is of, in words.
        intercept: of the logit; for a constant, its logit.
        terms: the features, in the order of training.
        trained_from, trained_to: first and last closing time of what it was fitted on, ISO 8601.
        rows: how many rows that were, 24 of which overlap.  assets: whose.
        data: SHA-256 of the bars.  seed: of everything random.  versions: of the libraries that fitted it.
    """

    name: str
    form: Form
    event: str
    intercept: float
    terms: tuple[Term, ...]
    calibration: Calibration
    trained_from: str
    trained_to: str
    rows: int
    assets: tuple[str, ...]
    data: str
    seed: int
    versions: Mapping[str, str]

    def problem(self, values: Mapping[str, float]) -> str:
        """Return why these features allow no probability: one is missing or has drifted; empty when they do."""
        for term in self.terms:
            value = values.get(term.name)
            if value is None or not isfinite(value):
                return f"feature {term.name} is missing"
            if not term.low <= value <= term.high:
                return f"feature {term.name} = {value:.4g} has drifted: training saw {term.low:.4g} to {term.high:.4g}"
        return ""

    def probability(self, values: Mapping[str, float]) -> float:
        """Return the probability of the event, within [0, 1]; ask ``problem`` first."""
        return min(1.0, max(0.0, self.calibration.apply(self._raw(values))))

    def _raw(self, values: Mapping[str, float]) -> float:
        if self.form == "reflection":  # twice the chance of a normal with the present deviation (Levy 1940)
            (term,) = self.terms
            return erfc(exp(-values[term.name]) * term.coefficient / sqrt(2))
        return _logistic(
            self.intercept
            + sum([term.coefficient * (values[term.name] - term.mean) / term.scale for term in self.terms])
        )

    def to_json(self) -> str:
        """Return the file's text; equal models have equal text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the file's text, 64 hexadecimal digits."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def version(self) -> str:
        """What an answer names it by: procedure, digest, what it was trained on."""
        return f"{self.name}@{self.digest[:8]}, trained {self.trained_from[:10]}..{self.trained_to[:10]}"


def read_model(text: str) -> ScoreModel:
    """Return the model that ``to_json`` wrote.

    Raises:
        ConfigurationError: it is not one, or holds a number that is none.
    """
    try:
        content = cast("dict[str, Any]", json.loads(text))
        if content.pop("format") != FORMAT or set(content) != {each.name for each in fields(ScoreModel)}:
            raise ValueError("another format")
        calibration = content["calibration"]
        content["terms"] = tuple([Term(**item) for item in content["terms"]])
        content["assets"] = tuple(content["assets"])
        content["calibration"] = Calibration(
            float(calibration["slope"]),
            float(calibration["intercept"]),
            tuple([(float(raw), float(found)) for raw, found in calibration["knots"]]),
        )
        model = ScoreModel(**content)
        _check(model)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"this is not a model file ({error})", suggestion="make one with grekko risk train"
        ) from error
    return model


def load_model(path: Path) -> ScoreModel:
    """Read a model file.

    Raises:
        ConfigurationError: it cannot be read or is none.
    """
    try:
        return read_model(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the model file {path} cannot be read ({type(error).__name__})") from error


@lru_cache(maxsize=1)
def shipped_model() -> ScoreModel:
    """Return the model that ships with the room; read once."""
    return load_model(_SHIPPED)


def _check(model: ScoreModel) -> None:
    terms = {"constant": len(model.terms) == 0, "reflection": len(model.terms) == 1, "logistic": len(model.terms) > 0}
    if not terms.get(model.form):
        raise ValueError("the form does not fit its terms")
    numbers = [model.intercept, model.calibration.slope, model.calibration.intercept]
    for term in model.terms:
        numbers += [term.mean, term.scale, term.coefficient, term.low, term.high]
        if term.scale <= 0 or term.low > term.high:
            raise ValueError(f"the range of {term.name}")
    knots = model.calibration.knots
    numbers += [value for knot in knots for value in knot]
    if not all(isfinite(value) for value in numbers) or model.calibration.slope < 0:
        raise ValueError("a number is not finite")
    if any(later <= sooner for (sooner, _), (later, _) in pairwise(knots)):
        raise ValueError("knots do not rise")


def _between(knots: tuple[tuple[float, float], ...], raw: float) -> float:
    place = bisect_right(knots, raw, key=lambda knot: knot[0])
    if place in (0, len(knots)):
        return knots[min(place, len(knots) - 1)][1]
    (left, low), (right, high) = knots[place - 1], knots[place]
    return low + (high - low) * (raw - left) / (right - left)


def _logistic(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + exp(-logit))
    return exp(logit) / (1 + exp(logit))

"""Makes ``expected.json`` with empyrical-reloaded 0.7.1 and arch 8.0.0 (pip install empyrical-reloaded arch).

Run it in an environment of its own: ``python generate.py``. The desk needs neither package.
"""

from __future__ import annotations

import json
from pathlib import Path

import empyrical  # pyright: ignore[reportMissingImports]
import numpy as np
from arch.univariate import EWMAVariance, Normal, ZeroMean  # pyright: ignore[reportMissingImports]


def fat_tailed(seed: int, n: int) -> np.ndarray:
    """Return GARCH(1,1) returns with Student t innovations of four degrees of freedom."""
    random = np.random.default_rng(seed)
    shocks = random.standard_t(4, n) / np.sqrt(2)
    level, found = 4e-4, []
    for shock in shocks:
        found.append(np.sqrt(level) * shock)
        level = 1e-5 + 0.1 * found[-1] ** 2 + 0.87 * level
    return np.asarray(found)


def main() -> None:
    """Write the vectors."""
    returns = np.clip(fat_tailed(7, 801), -0.4, 0.4).round(8)
    market = (0.6 * returns + fat_tailed(8, 801)).clip(-0.4, 0.4).round(8)
    expected: dict[str, object] = {"returns": returns.tolist(), "market": market.tolist()}
    for confidence in (0.95, 0.99):
        cutoff = 1 - confidence
        worst = int((len(returns) - 1) * cutoff) + 1
        expected[f"historical_{confidence}"] = {
            "var": -empyrical.value_at_risk(returns, cutoff),
            "mean_of_worst": -empyrical.conditional_value_at_risk(returns, cutoff),
            "worst": worst,
        }
    expected["annual_volatility"] = empyrical.annual_volatility(returns, annualization=365)
    expected["max_drawdown"] = empyrical.max_drawdown(returns)
    expected["beta"] = empyrical.beta(returns, market)
    scaled = 100 * returns
    fitted = ZeroMean(scaled, volatility=EWMAVariance(0.94), distribution=Normal()).fix([])
    ahead = float(fitted.forecast(horizon=1, reindex=False).variance.iloc[-1, 0])
    deviation = np.sqrt(ahead) / 100
    residuals = np.asarray(fitted.std_resid)[30:]
    expected["ewma_deviation"] = deviation
    for confidence in (0.95, 0.99):
        z = float(Normal().ppf(confidence))
        expected[f"ewma_{confidence}"] = {"z": z, "var": deviation * z}
        expected[f"filtered_{confidence}"] = -float(
            np.quantile(residuals * deviation, 1 - confidence, method="inverted_cdf")
        )
    Path(__file__).with_name("expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

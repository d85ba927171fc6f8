"""Intervals of n* made to hold on development curves."""

import csv
import math

import numpy as np
import pytest

from backcast.scaling import fit_law
from backcast.scaling.calibration import (
    STRETCH,
    UNKNOWN,
    WITHIN,
    Calibration,
    Residual,
    calibrated,
    residual,
    summary,
    write_residuals,
)

RNG = np.random.default_rng(0)


def cases(source: str, values, reach: float = 1.0) -> list[Residual]:
    return [Residual(source, reach, float(v)) for v in values]


def test_median_and_spread_are_those_of_what_is_within_reach() -> None:
    y = np.concatenate([np.linspace(0.5, 1.5, 101), np.full(50, np.inf), np.full(50, math.log(WITHIN) + 1)])
    middle, spread = summary(y)
    assert middle == pytest.approx(1.0)
    assert spread == pytest.approx(math.hypot(UNKNOWN, 0.34))
    assert residual(y, 1.3, "a") == Residual("a", middle, pytest.approx(0.3 / spread))


def test_nothing_is_summed_up_where_too_few_are_within_reach_or_half_are_among_the_runs() -> None:
    assert summary(np.concatenate([np.ones(1), np.full(99, np.inf)])) is None
    assert summary(np.linspace(-2, 1, 50)) is None


def test_one_sources_quantiles_are_the_empirical_ones() -> None:
    values = np.sort(RNG.normal(size=200))
    found = Calibration(tuple(cases("a", RNG.permutation(values)))).quantiles(
        1.0, np.array([0.05, 0.5, 0.95])
    )
    np.testing.assert_allclose(found, np.quantile(values, [0.05, 0.5, 0.95], method="hazen"), atol=1e-12)


def test_each_source_counts_as_one_whatever_its_number_of_cases() -> None:
    table = Calibration((*cases("many", np.full(5000, -1.0)), *cases("few", np.full(50, 1.0))))
    assert table.quantiles(1.0, np.array([0.45]))[0] == -1.0
    assert table.quantiles(1.0, np.array([0.55]))[0] == pytest.approx(1.0, abs=0.05)
    assert table.without("many").quantiles(1.0, np.array([0.01]))[0] == 1.0


def test_cases_of_another_reach_hardly_count() -> None:
    table = Calibration((*cases("a", np.full(50, -1.0), 0.3), *cases("a", np.full(50, 1.0), 3.0)))
    assert table.quantiles(0.3, np.array([0.9]))[0] == pytest.approx(-1.0, abs=1e-2)
    assert table.quantiles(3.0, np.array([0.1]))[0] == pytest.approx(1.0, abs=1e-2)


def test_samples_keep_their_order_and_those_at_infinity() -> None:
    samples = 100 * np.exp(RNG.normal(1.0, 0.4, 500))
    samples[RNG.random(500) < 0.2] = np.inf
    found = calibrated(samples, 100.0, Calibration(tuple(cases("a", RNG.normal(size=300)))))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(samples))
    ordered = found[np.argsort(samples)]
    assert (np.diff(ordered[np.isfinite(ordered)]) >= 0).all()


def test_a_target_among_the_runs_is_left_as_it_is() -> None:
    samples = 100 * np.exp(RNG.normal(-1.0, 0.2, 100))
    assert calibrated(samples, 100.0, Calibration.shipped()) is samples


def test_intervals_of_an_overconfident_posterior_hold_as_often_as_they_say() -> None:
    """A posterior a third as wide as its errors, calibrated on 400 cases and asked of 400 others: binomial limits."""

    def draw() -> tuple[np.ndarray, float]:
        scale = RNG.uniform(0.1, 0.3)
        centre = RNG.uniform(1.2, 1.8)
        return centre + scale * np.linspace(-2, 2, 201), centre + 3 * scale * RNG.normal()

    table = Calibration(tuple(r for r in (residual(*draw(), "a") for _ in range(400)) if r))
    held, before = 0, 0
    for _ in range(400):
        y, truth = draw()
        low, high = np.log(np.quantile(calibrated(np.exp(y), 1.0, table), [0.05, 0.95]))
        held += low <= truth <= high
        before += np.quantile(y, 0.05) <= truth <= np.quantile(y, 0.95)
    assert before < 300
    assert 350 <= held <= 392  # 90 % of 400, and what `STRETCH` adds
    assert STRETCH >= 1


def test_the_shipped_table_has_the_sources_that_it_says_and_no_other_laws_depend_on_where_it_is_read() -> (
    None
):
    sources = [r.source for r in Calibration.shipped().residuals]
    assert set(sources) == {"llm_finetune", "prompt_vs_head", "few_shot", "lcdb"}
    assert min(sources.count(source) for source in set(sources)) >= 30


def test_residuals_are_read_as_they_were_written(tmp_path) -> None:
    write_residuals(str(tmp_path / "table.csv"), [Residual("a", 1.0, -0.5)])
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"source": "a", "reach": "1.0000", "residual": "-0.5000"}]


def test_a_law_takes_a_calibration_of_ones_own() -> None:
    rows = [{"n": n, "value": 0.2 + 2.0 * n**-0.4} for n in (50, 100, 200, 400, 800)]
    law, target = fit_law(rows, bounds=(0, math.inf)), 0.2 + 2.0 * 3200**-0.4
    own = Calibration(tuple(cases("a", np.linspace(-0.1, 0.1, 50), math.log(4))))
    narrow, shipped = law.invert(target, calibration=own), law.invert(target)
    assert shipped.low <= 3200 <= shipped.high
    assert narrow.high / narrow.low < 1.3 < shipped.high / shipped.low

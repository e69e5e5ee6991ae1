"""Contrasts over several data sets: published numbers, coverage in simulation, what is read and what is refused."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import report
from mrl_jax.report import across
from mrl_jax.report.across import Effect
from mrl_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
STUDIES = [REFERENCE / name for name in ("fashion_mnist_study", "newsgroups_study", "reuters_r52_study")]


def test_the_summary_is_that_of_a_published_meta_analysis() -> None:
    """BCG vaccine against tuberculosis (Colditz et al. 1994): log relative risks of 13 trials. τ² and the mean as
    metafor's documentation has them for method PM, the interval of Hartung and Knapp as statsmodels computes it."""
    treated = [4, 6, 3, 62, 33, 180, 8, 505, 29, 17, 186, 5, 27], [
        119, 300, 228, 13536, 5036, 1361, 2537, 87886, 7470, 1699, 50448, 2493, 16886]  # fmt: skip
    control = [11, 29, 11, 248, 47, 372, 10, 499, 45, 65, 141, 3, 29], [
        128, 274, 209, 12619, 5761, 1079, 619, 87892, 7232, 1600, 27197, 2338, 17825]  # fmt: skip
    (a, b), (c, d) = np.array(treated, float), np.array(control, float)
    effects = [
        Effect(*one)
        for one in zip(
            np.log(a / (a + b)) - np.log(c / (c + d)), np.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)), strict=True
        )
    ]
    found = across.pooled(effects)
    assert found.tau**2 == pytest.approx(0.3181, abs=5e-5)
    assert found.mean == pytest.approx(-0.7150, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((-1.10909838, -0.32083793), abs=1e-7)
    assert found.new_high - found.mean > 2.17881283 * math.sqrt(0.31806845 + 0.18089219**2)  # with one estimate of τ²


@pytest.mark.slow
@pytest.mark.parametrize(("count", "tau"), [(3, 1.0), (5, 0.5), (8, 0.5), (8, 3.0), (12, 0.0)])
def test_intervals_cover_what_they_promise(count: int, tau: float) -> None:
    """Data sets of unequal precision; the interval of the mean, and that of one more data set."""
    rng, simulations, mean, new = np.random.default_rng(count), 800, 0, 0
    for _ in range(simulations):
        errors = rng.uniform(0.3, 1.5, count)
        truth = 0.7 + tau * rng.normal(size=count + 1)
        seen = truth[:-1] + errors * rng.normal(size=count)
        found = across.pooled([Effect(*x) for x in zip(seen, errors, strict=True)])
        mean += found.low <= 0.7 <= found.high
        new += found.new_low <= truth[-1] <= found.new_high
    assert 0.935 < mean / simulations < 0.995
    assert 0.93 < new / simulations <= 1


def test_a_spread_of_zero_is_found_where_errors_explain_everything() -> None:
    assert across.pooled([Effect(0.1, 0.5), Effect(0.2, 0.5), Effect(0.15, 0.4)]).tau == 0
    same = across.pooled([Effect(0.0, 0.0)] * 3)  # one model in both arms
    assert (same.mean, same.tau) == (0, 0)
    assert same.high == pytest.approx(0, abs=1e-5)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=2, max_size=9), st.floats(-5, 5))
def test_a_shift_of_all_data_sets_shifts_the_summary(effects: list[tuple[float, float]], shift: float) -> None:
    one = across.pooled([Effect(*e) for e in effects])
    other = across.pooled([Effect(mean + shift, error) for mean, error in effects])
    assert other.mean == pytest.approx(one.mean + shift, abs=1e-6)
    assert other.tau == pytest.approx(one.tau, abs=1e-5)
    assert other.new_high - other.mean == pytest.approx(one.new_high - one.mean, abs=1e-5)


def test_curves_are_interpolated_between_their_dims_and_not_beyond() -> None:
    curve = {1.0: Effect(0.0, 0.1), 3.0: Effect(1.0, 0.3), 24.0: Effect(4.0, 0.3)}
    found = across.at_ratios(curve)
    assert [*found] == [1, 2, 4, 8, 16]
    assert found[1] == curve[1.0]
    assert found[2].mean == pytest.approx(math.log(2) / math.log(3))
    assert found[2].error == pytest.approx(0.1 + 0.2 * math.log(2) / math.log(3))
    assert found[16].mean == pytest.approx(1 + 3 * math.log2(16 / 3) / math.log2(8))


def test_the_crossing_lies_where_the_mean_is_zero() -> None:
    curves = {
        f"set{i}": {2.0**k: Effect(0.01 * (2.5 + 0.1 * i - k), 0.001) for k in range(6)} for i in (-2, -1, 0, 1, 2)
    }
    found = across.crossing(across.summarise(curves))
    assert found is not None
    assert found.ratio == pytest.approx(2**2.5, rel=0.01)
    assert found.low < found.ratio < found.high
    assert found.low > 2**2
    assert found.high < 2**3
    level = {name: {ratio: Effect(0.02, 0.001) for ratio in (1.0, 2.0)} for name in "abc"}
    assert across.crossing(across.summarise(level)) is None
    assert across.left_out(curves) == (30, 30)
    assert across.left_out({name: curves[name] for name in ("set0", "set1", "set2")}) == (0, 0)
    sharp = {
        ratio: across.Pooled(3, 0.5 - x, 0.5 - x - 1e-7, 0.5 - x + 1e-7, -1, 1, 0) for x, ratio in ((0, 1), (1, 2))
    }
    found = across.crossing(sharp)
    assert found is not None
    assert found.low <= found.ratio <= found.high
    assert found.ratio == pytest.approx(2**0.5, rel=1e-3)


def test_one_more_data_set_is_never_surer_than_the_mean() -> None:
    for curves in across.read(STUDIES).values():
        for pooled in across.summarise(curves).values():
            assert pooled.new_low <= pooled.low
            assert pooled.new_high >= pooled.high


def test_committed_studies_are_summarised(tmp_path: Path) -> None:
    words = ["--across", *map(str, STUDIES), "--out", str(tmp_path)]
    assert report.main(words) == 0
    text = (tmp_path / "across.md").read_text()
    assert "fashion_mnist, newsgroups, reuters_r52" in text
    found = across.read(STUDIES)["linear_top1", "MRL", "FF"]
    assert found["reuters_r52"][32].mean == pytest.approx(-0.00716511)  # of differences.csv
    assert found["reuters_r52"][32].error == pytest.approx((0.000723895 + 0.0150541) / 2 / 1.959964, rel=1e-5)
    pooled = across.summarise(found)[32]
    cell = f"{100 * pooled.mean:+.2f}".replace("-", "−")
    assert f"| 1/32 | 3 | {cell} [" in text
    line = next(line for line in (tmp_path / "across.csv").read_text().splitlines() if "MRL,FF,32," in line)
    assert float(line.split(",")[5]) == pytest.approx(pooled.mean, rel=1e-5)
    assert (tmp_path / "plots" / "across-linear_top1.png").stat().st_size > 1000


def test_mistakes_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*paths: Path) -> str:
        assert report.main(["--across", *map(str, paths), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "there is no such file; --across reads" in said(tmp_path)
    assert "on 3 data sets; the most are 2" in said(*STUDIES[:2])
    assert "have the same name; give one report for each data set" in said(STUDIES[1], STUDIES[1])
    again = tmp_path / "again"
    shutil.copytree(STUDIES[1], again)
    text = (again / "config.yaml").read_text()
    (again / "config.yaml").write_text(text.replace("name: newsgroups", "name: other", 1))
    assert "have the same data; give one report for each data set" in said(STUDIES[1], again)
    damaged = tmp_path / "damaged"
    shutil.copytree(STUDIES[0], damaged)
    (damaged / "differences.csv").write_text("metric,a,b,dim,mean,low,high\nx,MRL,FF,none,1,0,2\n")
    assert "cannot be read as the differences of a report" in said(damaged)
    (damaged / "config.yaml").unlink()
    assert "has no config.yaml" in said(damaged)
    with pytest.raises(UserError):
        across.read([tmp_path / "nowhere"])

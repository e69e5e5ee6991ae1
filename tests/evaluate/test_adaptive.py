"""Cascades as part of a run: what lands in evaluation.csv and the report, from one command."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from mrl_jax import evaluate, report, train
from mrl_jax.config import EvaluationConfig
from mrl_jax.evaluate import adaptive, cascade
from mrl_jax.report.gather import gather
from mrl_jax.runs import read_rows
from mrl_jax.system.errors import UserError

DIMS = (4, 8, 16)
CASCADE = ["evaluation.cascade=true", "evaluation.epsilon=0.3", "evaluation.delta=0.2", "evaluation.neighbours=false"]


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    command = [*tiny, *CASCADE, "arms=[mrl,mrl_e,ff]", "seeds=2", f"results_dir={results}", "run=cascade"]
    assert train.main(command) == 0
    return results / "tiny" / "cascade"


def test_a_run_says_what_its_cascades_do(run: Path) -> None:
    values = defaultdict(dict)
    for row in read_rows(run / "evaluation.csv"):
        if row.metric.startswith("cascade"):
            assert row.split == "test"
            values[row.arm, row.seed, row.metric][row.dim] = row.value
    assert {arm for arm, _, _ in values} == {"mrl", "mrl_e"}
    for arm in ("mrl", "mrl_e"):
        for seed in (0, 1):
            assert values[arm, seed, "cascade_certified"][16] in (0, 1)
            for rule in ("greedy", "certified"):
                of = {
                    m: values[arm, seed, f"cascade_{rule}_{m}"] for m in ("share", "dims", "cumulative_dims", "kflop")
                }
                shares = [of["share"][m] for m in DIMS]
                assert sum(shares) == pytest.approx(1)
                assert of["dims"][16] == pytest.approx(np.dot(shares, DIMS))
                asked = DIMS if arm == "mrl_e" else np.cumsum(DIMS)
                assert of["cumulative_dims"][16] == pytest.approx(np.dot(shares, asked))
                assert of["kflop"][16] == pytest.approx(2 * 4 * np.dot(shares, asked) / 1e3)


def test_the_outcomes_behind_the_table_are_kept(run: Path) -> None:
    rows = {r[1:6]: r.value for r in read_rows(run / "evaluation.csv")}
    with np.load(run / "predictions" / "mrl_e-seed1.npz") as kept:
        for rule in ("greedy", "certified"):
            for metric in (f"cascade_{rule}_top1", f"cascade_{rule}_dims"):
                assert kept[f"test/{metric}/16"].mean() == pytest.approx(rows["mrl_e", 1, 16, "test", metric])
            right = {m: kept[f"test/linear_top1/{m}"] for m in DIMS}
            spent, answers = kept[f"test/cascade_{rule}_dims/16"], kept[f"test/cascade_{rule}_top1/16"]
            np.testing.assert_array_equal(answers, [right[int(m)][i] for i, m in enumerate(spent)])


def test_the_report_shows_them(run: Path, tmp_path: Path) -> None:
    assert report.main([str(run), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "## Adaptive classification" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| MRL-E, greedy"))
    gathered = gather([run])
    series = gathered.find("mrl_e")
    full = gathered.values(series, "linear_top1")[16].mean()
    answered = gathered.values(series, "cascade_greedy_top1")[16].mean()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert float(cells[1]) == pytest.approx(100 * answered, abs=0.006)
    assert float(cells[2].split()[0].replace("−", "-")) == pytest.approx(100 * (full - answered), abs=0.006)
    assert cells[3].endswith("of 16")
    assert (tmp_path / "plots" / "cascade.png").exists()
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Adaptive classification</h2>" in page
    assert "MRL-E, greedy" in page


def random_logits(n: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Logits [n, 5] at three granularities, each less noisy than the one before, and labels [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n)
    return [3 * np.eye(5)[labels] + noise * rng.normal(size=(n, 5)) for noise in (2, 1.2, 1)], labels


def test_rules_are_those_of_the_cascade_on_disjoint_parts() -> None:
    logits, labels = random_logits(1200, 0)
    made = adaptive.rules(logits, labels, 0.02, 0.1, "margin", seed=3)
    assert made["greedy"].temperatures == tuple(cascade.temperature(x, labels) for x in logits)
    fitting, certifying = adaptive.split(1200, 3)
    assert sorted([*fitting, *certifying]) == list(range(1200))
    assert made["certified"].temperatures == tuple(cascade.temperature(x[fitting], labels[fitting]) for x in logits)
    # What was learnt from the other part alone does not change with the part that certifies.
    changed = labels.copy()
    changed[certifying] = (labels[certifying] + 1) % 5
    again = adaptive.rules(logits, changed, 0.02, 0.1, "margin", seed=3)
    assert again["certified"].temperatures == made["certified"].temperatures
    assert made["certified"].certified
    sure = [cascade.confidence(x, t, "margin") for x, t in zip(logits, made["certified"].temperatures, strict=True)]
    left = cascade.leaving(np.stack(sure)[:, certifying], made["certified"].thresholds)
    right = np.stack([x.argmax(1) == labels for x in logits])[:, certifying]
    assert right[-1].mean() - right[left, np.arange(len(left))].mean() < 0.02


def test_without_a_certificate_everything_is_read() -> None:
    logits, labels = random_logits(400, 1)
    logits[0] = 1e4 * np.eye(5)[(labels + 1) % 5]  # the prefix is always wrong, and sure whatever the temperature
    logits.pop(1)
    made = adaptive.rules(logits, labels, 0.02, 0.1, "margin", seed=0)["certified"]
    assert not made.certified
    z, head = logits[0], (np.eye(5), np.zeros(5))
    own = {5: head, 10: (np.concatenate([np.zeros((5, 5)), np.eye(5)]), np.zeros(5))}
    both = np.concatenate([z, logits[1]], axis=1)
    splits = {"validation": both, "test": both}
    config = EvaluationConfig(cascade=True, epsilon=0.02)
    scores = dict.fromkeys(("validation", "test"), labels)
    found = {
        s.metric: s for _, s in evaluate.score_cascade(splits, scores, own, False, (5, 10), config, 0) if s.dim == 10
    }
    assert found["cascade_certified"].value == 0
    assert found["cascade_certified_dims"].value == 10
    assert found["cascade_certified_cumulative_dims"].value == 15
    assert found["cascade_certified_top1"].value == (logits[1].argmax(1) == labels).mean()


def test_too_small_a_validation_split_is_said_before_training() -> None:
    needed = cascade.examples_needed(0.01, 0.1)
    assert cascade.p_value(0, 0, needed, 0.01) <= 0.1 < cascade.p_value(0, 0, needed - 1, 0.01)
    adaptive.check(4 * needed // 3 + 2, 0.01, 0.1)
    for count in range(300, 4 * needed // 3 + 3):
        certifying = len(adaptive.split(count, 0)[1])
        if certifying >= needed:
            adaptive.check(count, 0.01, 0.1)
            continue
        with pytest.raises(UserError, match=rf"takes \d+ validation .*{needed} of them .* there are {count}") as said:
            adaptive.check(count, 0.01, 0.1)
        assert count < int(re.findall(r"takes (\d+)", str(said.value))[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluation.epsilon=1"], "evaluation.epsilon=1.0 is not allowed; between 0 and 1"),
        (["evaluation.delta=0"], "evaluation.delta=0.0 is not allowed; between 0 and 1"),
        (["evaluation.confidence=max"], "evaluation.confidence=max is unknown; allowed: max_softmax, margin, entropy"),
        (["arms=[ff]"], "evaluation.cascade=true needs a nested arm with two granularities or more; arms=['ff']"),
        (["evaluation.epsilon=0.01", "evaluation.delta=0.1"], "Raise data.validation_fraction, data.limit, epsilon"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], said: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train.main([*tiny, *CASCADE, *words, f"results_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())

"""Few examples, parts of the classes, unknown and damaged inputs: against scikit-learn and float64 NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestCentroid, NearestNeighbors
from sklearn.preprocessing import normalize

from mrl_jax.evaluate import corrupt, few_shot, parts, unknown
from mrl_jax.evaluate.corrupt import CORRUPTIONS
from mrl_jax.evaluate.metrics import METRICS, find, ordered
from mrl_jax.system.errors import UserError

CLASSES, WIDTH = 4, 12


def clusters(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings that overlap, of unequal classes; the last one has three examples in a hundred."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.choice(CLASSES, n, p=[0.5, 0.27, 0.2, 0.03]))
    centres = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
    return (centres[labels] + rng.normal(size=(n, WIDTH))).astype(np.float32), labels


# --- few examples -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    made = {
        name: clusters(n, seed) for seed, (name, n) in enumerate([("train", 200), ("validation", 40), ("test", 90)])
    }
    return {name: z for name, (z, _) in made.items()}, {name: labels for name, (_, labels) in made.items()}


@pytest.mark.parametrize("examples", [1, 5])
@pytest.mark.parametrize(
    ("method", "oracle"),
    [("", lambda: NearestCentroid()), ("logistic_", lambda: LogisticRegression(tol=1e-8, max_iter=1000))],
)
def test_classifiers_of_few_examples_answer_as_those_of_scikit_learn(data, examples, method, oracle):
    z, labels = data
    ours = {
        (split, dim): share
        for split, dim, by, share in few_shot.outcomes(z, labels, (3, WIDTH), CLASSES, examples, seed=1)
        if by == method
    }
    drawn = few_shot.draw(labels["train"], CLASSES, examples, seed=1)
    for (split, dim), share in ours.items():
        train, queries = (normalize(z[name][:, :dim].astype(np.float64)) for name in ("train", split))
        right = [oracle().fit(train[rows], labels["train"][rows]).predict(queries) == labels[split] for rows in drawn]
        # One answer in 500 may be another: two classes whose scores are equal but for rounding.
        assert np.abs(share - np.mean(right, axis=0, dtype=np.float64)).mean() <= 0.002
        assert share.mean() == pytest.approx(np.mean(right), abs=2e-3)


def test_many_draws_are_fitted_in_parts_with_the_same_result(data, monkeypatch):
    z, labels = data
    whole = list(few_shot.outcomes(z, labels, (5,), CLASSES, 5, seed=0))
    monkeypatch.setattr(few_shot, "MAX_ELEMENTS", 3 * 5 * 20)
    for (*a, of_whole), (*b, of_parts) in zip(whole, few_shot.outcomes(z, labels, (5,), CLASSES, 5, 0), strict=True):
        assert a == b
        np.testing.assert_allclose(of_whole, of_parts, atol=0.051)  # one draw of twenty may be a tie


@given(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 3))
def test_a_draw_has_so_many_of_each_class_or_all_and_holds_the_smaller_draws(labels, examples, seed):
    labels = np.array(labels)
    drawn, fewer = (few_shot.draw(labels, CLASSES, n, seed) for n in (examples, max(1, examples - 1)))
    counts = np.minimum(np.bincount(labels, minlength=CLASSES), examples)
    assert drawn.shape == (few_shot.DRAWS, counts.sum())
    for rows, part in zip(drawn, fewer, strict=True):
        assert len(set(rows)) == len(rows)
        np.testing.assert_array_equal(labels[rows], np.repeat(np.arange(CLASSES), counts))
        assert set(part) <= set(rows)


def test_a_class_without_training_examples_is_never_the_nearest():
    z = np.eye(3, dtype=np.float32)[None]
    kernels, biases = few_shot.nearest_mean(z, np.array([0, 0, 2]), 3)
    scores = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) @ kernels[0] + biases[0]
    assert set(scores.argmax(axis=1)) == {0, 2}


# --- parts of the classes -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_thirds_of_the_classes_are_even_and_ordered_by_frequency(labels):
    counts, part = np.bincount(labels, minlength=10), parts.by_frequency(np.array(labels), 10)
    assert np.bincount(part).tolist() == [4, 3, 3]
    assert counts[part == 0].min() >= counts[part == 1].max() >= counts[part == 1].min() >= counts[part == 2].max()


def test_super_classes_come_from_a_separator_or_a_file(tmp_path: Path):
    classes = ("rec.autos", "sci.space", "rec.sport.hockey")
    np.testing.assert_array_equal(parts.superclasses(".", classes), [0, 1, 0])
    path = tmp_path / "of.json"
    held_out = {"sci.med": "body"}  # by `data.hold_out`: no class of the data any more
    path.write_text(json.dumps(dict(zip(classes, ("car", "sky", "sky"), strict=True)) | held_out))
    np.testing.assert_array_equal(parts.superclasses(str(path), classes), [0, 1, 1])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"a.x": "a", "a.y": "a"}', "has no super-class for 'b.z'; 1 of 3 are missing"),
        ('{"a.x": "a", "a.y": "a", "b.zz": "b"}', r"has no super-class for 'b.z' \(did you mean b.zz\?\); 1 of 3"),
        ('["a"]', "does not hold an object from class to super-class"),
        ('{"a.x": "a", "a.y": "a", "b.z": "a"}', "makes 1 super-class of 3 classes"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_of_super_classes_that_does_not_fit_is_refused(tmp_path: Path, content: str, sentence: str):
    path = tmp_path / "of.json"
    path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        parts.superclasses(str(path), ("a.x", "a.y", "b.z"))


@pytest.mark.parametrize("rule", ["/", "missing.json", ""])
def test_a_rule_that_makes_no_super_classes_is_refused(rule: str):
    said = "(makes 3 super-classes of 3|cannot be read|is empty)"
    with pytest.raises(UserError, match=f"evaluation.superclass={rule} {said}"):
        parts.superclasses(rule, ("a.x", "a.y", "b.z"))


# --- unknown inputs -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_the_area_is_that_of_scikit_learn_and_the_mean_of_the_outcomes(known, unknown_scores):
    area, outcomes = unknown.auroc(np.array(known, float), np.array(unknown_scores, float))
    truth = np.repeat([1, 0], [len(known), len(unknown_scores)])
    assert area == pytest.approx(roc_auc_score(truth, known + unknown_scores), abs=1e-12)
    assert outcomes.mean() == pytest.approx(area, abs=1e-5)


@pytest.mark.parametrize(("n", "m"), [(3000, 200), (400, 900)])
def test_outcomes_have_the_variance_of_an_area_over_other_samples(n: int, m: int):
    rng = np.random.default_rng(0)
    samples = [unknown.auroc(rng.normal(1, 1, n), rng.normal(0, 2, m)) for _ in range(400)]
    of_outcomes = np.mean([outcomes.var() / n for _, outcomes in samples])
    assert of_outcomes == pytest.approx(np.var([area for area, _ in samples]), rel=0.25)


def test_confidence_orders_examples_by_their_largest_probability_and_is_not_rounded_to_one():
    rng = np.random.default_rng(0)
    z, kernel, bias = rng.normal(size=(80, WIDTH)), rng.normal(size=(5, CLASSES)), rng.normal(size=CLASSES)
    powers = np.exp(z[:, :5] @ kernel + bias)
    p = powers.max(axis=1) / powers.sum(axis=1)
    np.testing.assert_allclose(unknown.max_softmax(z.astype(np.float32), kernel, bias), np.log(p / (1 - p)), rtol=1e-4)
    sure = unknown.max_softmax(np.array([[60.0], [90.0]], np.float32), np.array([[1.0, 0.0]]), np.zeros(2))
    np.testing.assert_allclose(sure, [60, 90])


def test_the_cosine_of_the_tenth_neighbour_is_that_of_scikit_learn():
    queries, database = clusters(30, 5)[0], clusters(200, 6)[0]
    ours = unknown.nearest_cosines({"test": queries}, database, (3, WIDTH))
    for dim, by_name in ours.items():
        search = NearestNeighbors(n_neighbors=10, metric="cosine").fit(database[:, :dim].astype(np.float64))
        wanted = 1 - search.kneighbors(queries[:, :dim].astype(np.float64))[0][:, -1]
        np.testing.assert_allclose(by_name["test"], wanted, atol=1e-6)


# --- damaged inputs -----------------------------------------------------------------------------------------------

TEXTS = [n for n, entry in CORRUPTIONS.items() if entry.kind == "text"]
IMAGES = [n for n, entry in CORRUPTIONS.items() if entry.kind == "image"]


@pytest.mark.parametrize("name", TEXTS)
@settings(deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.integers(1, 5))
def test_what_happens_to_a_text_depends_on_it_alone(name, texts, strength):
    damaged = corrupt.corrupt(name, texts, strength)
    assert damaged == [corrupt.corrupt(name, [text], strength)[0] for text in texts]
    assert all(bool(new) >= bool(old.split()) for new, old in zip(damaged, texts, strict=True))  # none is emptied


def test_damage_is_as_frequent_as_its_strength_says():
    text = " ".join(f"word{i}" for i in range(4000))
    for strength, rate in enumerate(CORRUPTIONS["dropped_words"].strengths, 1):
        words = corrupt.corrupt("dropped_words", [text], strength)[0].split()
        assert 1 - len(words) / 4000 == pytest.approx(rate, abs=0.03)
        assert words == [word for word in text.split() if word in set(words)]
    plain = "a" * 20_000  # of swaps and inserted, replaced and dropped letters, half change the number of letters a
    lost = [20_000 - corrupt.corrupt("typos", [plain], s)[0].count("a") for s in range(1, 6)]
    for rate, count in zip(CORRUPTIONS["typos"].strengths, lost, strict=True):
        assert count / 20_000 == pytest.approx(rate * (1 / 4 + 1 / 4 * 25 / 26 - 1 / 4 / 26), rel=0.15)


@pytest.mark.parametrize("name", IMAGES)
def test_damage_to_images_grows_with_its_strength(name):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    damaged = [corrupt.corrupt(name, images, strength) for strength in range(1, 6)]
    errors = [np.abs(x.astype(float) - images).mean() for x in damaged]
    assert all(x.shape == images.shape and x.dtype == np.uint8 for x in damaged)
    assert errors[0] > 0
    assert errors == sorted(errors)


# --- names --------------------------------------------------------------------------------------------------------


def test_metrics_of_any_number_of_examples_are_known_by_name_and_stand_behind_the_others_in_their_order():
    assert find("few20_logistic_top1").title == "logistic regression on 20 examples per class, top-1 accuracy"
    assert find("few1_top1").compared
    assert find("few0_top1") is None
    assert find("typos3_top1") is METRICS["typos3_top1"]
    names = ["zzz", "few20_top1", "few5_top1", "knn_top1", "linear_top1", "few5_logistic_top1"]
    assert ordered(names) == ["linear_top1", "knn_top1", "few5_logistic_top1", "few5_top1", "few20_top1", "zzz"]

"""Baselines against scikit-learn used by hand, BM25 against its formula in a loop and trec_eval."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mrl_jax import arms
from mrl_jax.evaluate import baselines, bm25, ranking
from mrl_jax.system.errors import UserError

pytest.importorskip("sklearn")

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ALPHABET = [f"{a}{b}" for a in "bcdfgklm" for b in ("a", "emi", "ilu", "oka's", "UPO")]


def texts(rng: np.random.Generator, labels: np.ndarray) -> list[str]:
    """Noisy texts, a third of whose words are likelier in one class."""
    own = [rng.choice(ALPHABET[5 * label : 5 * label + 10], 2) for label in labels]
    return [" ".join([*mine, *rng.choice(ALPHABET, rng.integers(2, 8))]) for mine in own]


def split(seed: int, train: int) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    labels = {name: rng.integers(0, 4, n) for name, n in (("train", train), ("validation", 60), ("test", 90))}
    return {name: texts(rng, of) for name, of in labels.items()}, labels


def chosen_by_hand(make, inputs, labels):
    """The model with the best C on validation, fitted on train."""
    models = [make(c).fit(inputs["train"], labels["train"]) for c in baselines.GRID]
    return max(models, key=lambda model: model.score(inputs["validation"], labels["validation"]))


@pytest.mark.parametrize(("train", "fewest"), [(300, 1), (1_200, 2)])
def test_tfidf_answers_as_a_pipeline_of_scikit_learn(train: int, fewest: int) -> None:
    inputs, labels = split(0, train)
    model = chosen_by_hand(
        lambda c: make_pipeline(
            TfidfVectorizer(sublinear_tf=True, min_df=fewest), LogisticRegression(C=c, max_iter=200)
        ),
        inputs,
        labels,
    )
    for name, answers in baselines.tfidf(inputs, labels, 4).answers.items():
        assert np.array_equal(answers.prediction, model.predict(inputs[name]))
        assert np.array_equal(answers.top1, answers.prediction == labels[name])
        assert answers.confidence == pytest.approx(model.predict_proba(inputs[name]).max(axis=1), abs=1e-5)
        assert 0.3 < answers.top1.mean() < 1


def test_logistic_answers_as_a_pipeline_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels = {name: rng.integers(0, 3, n) for name, n in (("train", 200), ("validation", 50), ("test", 70))}
    scale = np.array([1e-3, 1, 50, 1, 1], np.float32)
    inputs = {
        name: ((rng.normal(size=(len(of), 5)) + np.eye(3, 5)[of]) * scale + 7 * scale).astype(np.float32)
        for name, of in labels.items()
    }
    for x in inputs.values():
        x[:, 4] = 3.0  # a constant coordinate
    model = chosen_by_hand(
        lambda c: make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200)), inputs, labels
    )
    for name, answers in baselines.logistic(inputs, labels, 3).answers.items():
        assert np.mean(answers.prediction == model.predict(inputs[name])) > 0.97  # float32 means, there


def test_knn_finds_the_neighbours_that_scikit_learn_finds() -> None:
    inputs, _ = split(2, 300)
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(inputs["train"])
    theirs = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute")
    theirs.fit(vectorizer.transform(inputs["train"]))
    cosines = vectorizer.transform(inputs["test"]) @ vectorizer.transform(inputs["train"]).T
    found = baselines.neighbours(inputs, 10)["test"]
    distances, _ = theirs.kneighbors(vectorizer.transform(inputs["test"]))
    ours = np.take_along_axis(cosines.toarray(), found, axis=1)  # of equal ones, theirs may be others
    assert ours == pytest.approx(1 - distances, abs=1e-6)
    assert (np.diff(ours) < 1e-6).all()


def test_nothing_is_chosen_or_learnt_on_the_test_split() -> None:
    inputs, labels = split(3, 200)
    rng = np.random.default_rng(4)
    others = inputs | {"test": texts(rng, labels["test"])}, labels | {"test": rng.integers(0, 4, 90)}
    one, other = baselines.tfidf(inputs, labels, 4).answers, baselines.tfidf(*others, 4).answers
    assert np.array_equal(one["validation"].confidence, other["validation"].confidence)


def test_a_class_without_training_texts_is_never_the_answer() -> None:
    inputs, labels = split(5, 200)
    labels["train"] = np.where(labels["train"] == 1, 0, labels["train"])
    answers = baselines.tfidf(inputs, labels, 5).answers["test"]
    assert set(answers.prediction) == {0, 2, 3}
    assert not answers.top1[labels["test"] == 1].any()
    assert np.isfinite(answers.confidence).all()


@pytest.mark.parametrize(
    ("train", "labels", "message"),
    [
        (
            ["a b", "c d"],
            [0, 1],
            "no word of two letters is in 1 of the 2 training texts; set evaluation.baseline=none",
        ),
        (["one two", "three"], [0, 0], "the training split has examples of one class only"),
    ],
)
def test_what_cannot_be_learnt_from_is_one_sentence(train: list[str], labels: list[int], message: str) -> None:
    parts = {"train": train, "validation": ["one"], "test": ["two"]}
    classes = {"train": np.array(labels), "validation": np.zeros(1, int), "test": np.zeros(1, int)}
    with pytest.raises(UserError, match=message):
        baselines.tfidf(parts, classes, 2)


@given(st.text(st.characters(max_codepoint=0x2FF)))
@example("It's a TEST, of_words 42 x é")
def test_words_are_those_of_scikit_learn_where_spaces_part_them(text: str) -> None:
    assert bm25.words(text) == TfidfVectorizer().build_analyzer()(text)


def test_words_of_scripts_without_spaces_are_characters_or_syllables() -> None:
    assert bm25.words("用Python写的代码 a bc") == [*"用", "python", *"写的代码", "bc"]
    assert bm25.words("スマートフォン を") == ["スマートフォン", "を"]


def by_the_formula(queries: list[str], documents: list[str]) -> np.ndarray:
    """BM25 as Robertson and Zaragoza write it, word by word."""
    split = [text.split() for text in documents]
    mean = sum(map(len, split)) / len(split)
    scores = np.zeros((len(queries), len(documents)))
    for (q, query), (d, document) in itertools.product(enumerate(queries), enumerate(split)):
        counts = Counter(document)
        for word in query.split():
            frequency = sum(word in other for other in split)
            idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
            length = 1 - 0.75 + 0.75 * len(document) / mean
            scores[q, d] += idf * counts[word] / (counts[word] + 1.2 * length)
    return scores


@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 10))
@settings(max_examples=30)
def test_bm25_ranks_by_the_formula(seed: int, documents: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(15)]
    made = [" ".join(rng.choice(words[:12], rng.integers(1, 9))) for _ in range(documents)]
    queries = [" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(5)]
    depth = min(depth, documents)
    found, scores = bm25.rank(queries, made, depth), by_the_formula(queries, made)
    best = np.where(found < 0, 0.0, np.take_along_axis(scores, np.maximum(found, 0), axis=1))
    assert best == pytest.approx(-np.sort(-scores, axis=1)[:, :depth], rel=1e-5)
    assert ((found < 0) == (best == 0)).all()
    for row in found:
        assert len(set(row[row >= 0])) == np.count_nonzero(row >= 0)


def test_bm25_on_a_judged_toy_collection_scores_as_trec_eval() -> None:
    trec = pytest.importorskip("pytrec_eval")
    documents = [
        "the cat sat on the mat",
        "dogs and cats are pets",
        "the stock market fell",
        "cat cat cat food for every cat",
        "market prices of cat food",
    ]
    queries = ["cat food", "stock market prices", "unknown words"]
    judgments = np.array([[0, 3, 2], [0, 4, 1], [1, 2, 1], [1, 4, 1], [2, 0, 1]])
    found = bm25.rank(queries, documents, 5)
    assert found[0].tolist()[:3] == [3, 4, 0]
    assert found[1].tolist() == [2, 4, -1, -1, -1]
    assert found[2].tolist() == [-1] * 5
    ours = ranking.outcomes(found, judgments, 5)
    qrels = {f"q{q}": {f"d{d}": int(g) for of, d, g in judgments if of == q} for q in range(3)}
    scores = by_the_formula(queries, documents)
    run = {f"q{q}": {f"d{d}": scores[q, d] for d in range(5) if scores[q, d] > 0} for q in range(3)}
    theirs = trec.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10"}).evaluate(run)
    for q in range(3):
        assert ours["ndcg@10"][q] == pytest.approx(theirs.get(f"q{q}", {}).get("ndcg_cut_10", 0.0), abs=1e-6)
        assert ours["recall@10"][q] == pytest.approx(theirs.get(f"q{q}", {}).get("recall_10", 0.0), abs=1e-6)


def test_documents_without_words_and_many_queries_are_ranked() -> None:
    documents = ["", "one two", "!", "two"]
    found = bm25.rank(["two"] * (bm25.QUERIES_AT_ONCE + 3), documents, 4)
    assert (found == [3, 1, -1, -1]).all()
    assert bm25.rank([], documents, 2).shape == (0, 2)
    assert (bm25.rank(["two"], ["", ""], 2) == -1).all()


@pytest.mark.parametrize("task", ["classes", "pairs", "scored pairs"])
def test_all_stands_for_the_baselines_that_suit_the_task(task: str) -> None:
    suited = {"classes": ("tfidf", "knn", "logistic"), "pairs": ("bm25",), "scored pairs": ()}[task]
    assert arms.classical("all", task) == arms.classical(["all"], task) == suited
    assert arms.classical("none", task) == arms.classical(None, task) == arms.classical([], task) == ()

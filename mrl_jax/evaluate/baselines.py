"""Classifiers without an embedding, which a run is compared with: what somebody would try first, by scikit-learn.

    tfidf      sublinear TF-IDF of words and logistic regression
    knn        the nearest training texts by the cosine of the same TF-IDF
    logistic   logistic regression on standardised features

They learn from the training split alone, as the model does. C is that of `GRID` with the best accuracy on the
validation split, of equals the smallest. BM25, for search, is in `bm25.py`: one formula over sparse counts, which is
less to install and keep than a library, and needs none.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_array

from mrl_jax.evaluate import bm25, classification
from mrl_jax.evaluate.classification import Answers
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError

GRID = (1.0, 10.0, 100.0)  # of C, the inverse strength of regularisation
SMALL = 1_000  # training texts; with fewer, words of a single text count too
MAX_ITERATIONS = 200  # of L-BFGS

Inputs = Mapping[str, Any]  # texts, or features [n, d], by split: train, validation, test
Labels = Mapping[str, np.ndarray]  # int [n] by split


class Fitted(NamedTuple):
    """A classifier's answers on validation and test, and the settings that were chosen for it."""

    answers: dict[str, Answers]
    settings: dict[str, Any]


def tfidf(inputs: Inputs, labels: Labels, classes: int) -> Fitted:
    """TF-IDF and logistic regression."""
    return _regression(vectors(inputs), labels, classes)


def logistic(inputs: Inputs, labels: Labels, classes: int) -> Fitted:
    """Logistic regression on standardised features."""
    mean, scale = inputs["train"].mean(axis=0, dtype=np.float64), inputs["train"].std(axis=0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    return _regression({split: (x - mean) / scale for split, x in inputs.items()}, labels, classes)


CLASSIFIERS: dict[str, Callable[[Inputs, Labels, int], Fitted]] = {"tfidf": tfidf, "logistic": logistic}


def neighbours(inputs: Inputs, k: int) -> dict[str, np.ndarray]:
    """The rows of the k nearest training texts by TF-IDF, int [n, k], for validation and test."""
    x = vectors(inputs)
    return {split: bm25.nearest(x[split], x["train"], min(k, x["train"].shape[0])) for split in ("validation", "test")}


def vectors(inputs: Inputs) -> dict[str, csr_array]:
    """Sublinear TF-IDF of the words of at least two training texts (one, of less than `SMALL`), of unit length."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    fewest = 1 if len(inputs["train"]) < SMALL else 2
    vectorizer = TfidfVectorizer(tokenizer=bm25.words, token_pattern=None, sublinear_tf=True, min_df=fewest)
    try:
        found = {"train": vectorizer.fit_transform(inputs["train"])}
    except ValueError:  # an empty vocabulary
        raise UserError(
            f"evaluation.baseline: no word of two letters is in {fewest} of the {len(inputs['train']):,} training "
            "texts; set evaluation.baseline=none"
        ) from None
    found |= {split: vectorizer.transform(inputs[split]) for split in ("validation", "test")}
    return {split: csr_array(x) for split, x in found.items()}


def _regression(x: Mapping[str, Any], labels: Labels, classes: int) -> Fitted:
    """Logistic regression with the C that is best on validation."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(np.unique(labels["train"])) < 2:
        raise UserError(
            "evaluation.baseline: the training split has examples of one class only; set evaluation.baseline=none"
        )
    fitted: Any = None
    most = -1.0
    for c in GRID:
        model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
        with warnings.catch_warnings(), threadpool_limits(1):  # several threads take longer, for arrays of this shape
            warnings.simplefilter("ignore")  # near enough after the last iteration
            accuracy = model.fit(x["train"], labels["train"]).score(x["validation"], labels["validation"])
        if accuracy > most:
            fitted, most = model, accuracy
    say(f"baseline: C={fitted.C:g} of {', '.join(f'{c:g}' for c in GRID)}, {100 * most:.1f} % of validation right")
    answers = {split: _answers(fitted, x[split], labels[split], classes) for split in ("validation", "test")}
    return Fitted(answers, {"C": fitted.C, "of": list(GRID), "validation": float(most)})


def _answers(model: Any, x: Any, labels: np.ndarray, classes: int) -> Answers:
    """What `model` answers, batch by batch; a class that it has not seen is never its answer."""
    rows, parts = classification.rows_at_once(classes), []
    for start in range(0, len(labels), rows):
        logits = np.full((len(labels[start : start + rows]), classes), -1e9, np.float32)
        logits[:, model.classes_] = model.predict_log_proba(x[start : start + rows])
        parts.append(classification.answers(jnp.asarray(logits), labels[start : start + rows]))
    return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))

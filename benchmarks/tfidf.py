"""The classical baseline of the text data sets: TF-IDF weights and logistic regression, by scikit-learn.

The regularisation C is chosen on the validation split (vocabulary and idf from train alone). The test accuracy is given
for that C and for C = 10, each fitted on train alone (what a trained encoder sees) and on train + validation.

    python benchmarks/tfidf.py [--data newsgroups reuters_r52 reuters_r8] [--json FILE]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from mrl_jax.data import Split, load

NAMES = ("newsgroups", "reuters_r52", "reuters_r8")
GRID = (3.0, 10.0, 30.0, 100.0)  # of C; 10 has to be among them
Texts = Sequence[str]


def fit(texts: Texts, labels: np.ndarray, c: float) -> Pipeline:
    """Sublinear TF-IDF of the words in at least two texts, then logistic regression with inverse penalty `c`."""
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2), LogisticRegression(C=c, max_iter=1000))
    return model.fit(texts, labels)


def texts_of(split: Split) -> list[str]:
    """The inputs of a text split."""
    return [str(text) for text in split.inputs]


def measure(name: str) -> dict[str, object]:
    """One record of the data set's split sizes, validation accuracies by C, and test accuracies, all in percent."""
    data = load(name)
    train, validation, test = (texts_of(split) for split in (data.train, data.validation, data.test))
    models = {c: fit(train, data.train.labels, c) for c in GRID}
    scores = {c: 100 * float(model.score(validation, data.validation.labels)) for c, model in models.items()}
    chosen = max(GRID, key=lambda c: scores[c])  # the smallest of equals

    every_text, every_label = train + validation, np.concatenate([data.train.labels, data.validation.labels])
    whole = {c: fit(every_text, every_label, c) for c in sorted({chosen, 10.0})}

    def on_test(model: Pipeline) -> float:
        return 100 * float(model.score(test, data.test.labels))

    return {
        "data": name,
        "train": len(train),
        "validation": len(validation),
        "test": len(test),
        "validation_accuracy": {f"{c:g}": score for c, score in scores.items()},
        "c": chosen,
        "test_accuracy": on_test(models[chosen]),
        "test_accuracy_train_and_validation": on_test(whole[chosen]),
        "test_accuracy_c10": on_test(models[10.0]),
        "test_accuracy_c10_train_and_validation": on_test(whole[10.0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="TF-IDF + logistic regression on the text data sets")
    parser.add_argument("--data", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there as well")
    arguments = parser.parse_args()
    records = []
    for name in arguments.data:
        record = measure(name)
        records.append(record)
        print(name, flush=True)
        for key, value in record.items():
            if key != "data":
                print(f"  {key:<40}{value if not isinstance(value, float) else f'{value:.2f}'}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

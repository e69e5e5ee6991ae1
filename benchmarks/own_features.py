"""What the defaults are worth on a user's own vectors: labelled features against logistic regression.

    python benchmarks/own_features.py [--data NAME …] [--json FILE]

Each set is trained on with `data=features data.train=… data.test=…`, without any other setting. The other side is
scikit-learn's logistic regression of standardised features, its C chosen on the validation split on which mrl_jax
chooses its recipe, then fitted on all training rows, validation included. Differences have a 95 % interval of a paired
bootstrap over the test rows. Recipes were chosen on the validation splits of the sets marked `development`; the others
were looked at afterwards. Three sets come with scikit-learn, the rest are embeddings of texts of `own_data.py`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from own_data import SETS as TEXTS
from own_data import difference, trained
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mrl_jax.data.cuts import cut
from mrl_jax.model.pretrained import pretrained

Part = tuple[np.ndarray, np.ndarray]  # features float32 [n, d] and labels [n]

BUNDLED = ("digits", "breast_cancer", "wine")  # of scikit-learn
EMBEDDED = ("wordnet", "tweets")  # of own_data.py, by all-MiniLM-L6-v2
DEVELOPMENT = ("digits", "minilm_wordnet")
DIMS = (256, 64, 8)
GRID = (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)  # of C


def read(name: str) -> tuple[Part, Part]:
    """Train and test rows."""
    if name in BUNDLED:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        a, b, c, d = train_test_split(x.astype(np.float32), y, test_size=0.25, random_state=0, stratify=y)
        return (a, c), (b, d)
    model = pretrained("minilm")
    train, test = (([*zip(*rows, strict=True)]) for rows in TEXTS[name.removeprefix("minilm_")].read())
    return tuple((model.encode(texts), np.array(labels)) for texts, labels in (train, test))


def tuned(train: Part, test: Part) -> tuple[np.ndarray, float]:
    """Which test rows tuned logistic regression has right [n], and its C."""
    _, labels = np.unique(train[1], return_inverse=True)
    fitted, held_out = cut(labels, 0.1)

    def fit(c: float, rows: np.ndarray) -> LogisticRegression:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))
        return model.fit(train[0][rows], train[1][rows])

    score = {c: np.mean(fit(c, fitted).predict(train[0][held_out]) == train[1][held_out]) for c in GRID}
    best = max(GRID, key=lambda c: score[c])
    return fit(best, np.arange(len(train[1]))).predict(test[0]) == test[1], best


def ours(train: Part, test: Part, folder: Path) -> tuple[dict[int, np.ndarray], str]:
    """Which test rows the plain command has right, by dim, and the recipe that it chose."""
    for name, (features, labels) in (("train", train), ("test", test)):
        np.savez(folder / f"{name}.npz", features=features, labels=labels)
    run = trained(folder, "data=features", "data.train=train.npz", "data.test=test.npz")
    with np.load(next((run / "predictions").glob("*-seed0.npz"))) as outcomes:
        right = {dim: outcomes[f"test/linear_top1/{dim}"] > 0 for dim in DIMS}
    return right, json.loads((run / "recipe.json").read_text())["recipe"]


def measure(name: str) -> dict[str, object]:
    """The record of one set: accuracies in percent, differences with their intervals."""
    train, test = read(name)
    baseline, c = tuned(train, test)
    with tempfile.TemporaryDirectory() as folder:
        right, recipe = ours(train, test, Path(folder))
    record: dict[str, object] = {"data": name, "development": name in DEVELOPMENT, "width": train[0].shape[1]}
    record |= {"train": len(train[1]), "test": len(test[1]), "classes": len(np.unique(train[1]))}
    record |= {"logistic": 100 * float(baseline.mean()), "C": c, "recipe": recipe}
    for dim, hits in right.items():
        record |= {f"{dim}": 100 * float(hits.mean()), f"{dim} − logistic": difference(hits, baseline)}
    return record


def main() -> None:
    names = (*BUNDLED, *(f"minilm_{name}" for name in EMBEDDED))
    parser = argparse.ArgumentParser(description="The defaults on labelled features against logistic regression")
    parser.add_argument("--data", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records to this file")
    options = parser.parse_args()
    records = []
    for name in options.data:
        records.append(measure(name))
        print(json.dumps(records[-1], ensure_ascii=False), flush=True)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

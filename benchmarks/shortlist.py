"""The prefix as a shortlist, made in several ways: recall of what is nearest at full width, and nDCG@10 of the prefix.

    python benchmarks/shortlist.py --run results/wordnet/nested --json FILE          # of a run on texts, per seed
    python benchmarks/shortlist.py --run results/wordnet_bag/nested --validation     # to choose settings
    python benchmarks/shortlist.py --collection cranfield --model minilm --json FILE # vectors of a model as it is

A run of classes is searched as in `retrieval.py --real`: its training and validation texts for its test texts. A run
of pairs is searched for its test queries. Arms: the prefix as it is; `pca`, principal directions about the mean;
`rotated`, those about the origin; and, for a collection, the adaptor of `mrl_jax.search.adapt` with three seeds. The
JSON has per query the share of the ten documents nearest by all dims that are among the 100 nearest by the prefix, and
nDCG@10 where there are judgments.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

K, SHORTLIST, SEED = 10, 100, 0
MAX_QUERIES = {"validation": 1000, "test": 2000}
MAX_FIT_ROWS = 20_000  # documents of pairs that directions are fitted on
SEEDS = 3  # of adaptors

Vectors = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]  # queries, documents, fitted on, judgments


def of_run(run: str, arm: str | None, seed: int, validation: bool) -> Vectors:
    """What a run embeds."""
    import mrl_jax
    from mrl_jax import config, data, runs

    settings = config.from_yaml(runs.find(run) / "config.yaml")
    dataset = data.load(dataclasses.replace(settings.data, limit=None))
    model = mrl_jax.load(run, arm, seed)

    def encode(texts: Any) -> np.ndarray:
        return model.encode([str(text) for text in texts], batch_size=512)

    rng = np.random.default_rng(SEED)
    if isinstance(dataset, data.Dataset):
        held = dataset.validation.inputs
        known = [*dataset.train.inputs, *(() if validation else held)]
        rng.permutation(len(known))  # retrieval.py draws the documents first
        asked = held if validation else dataset.test.inputs
        chosen = rng.permutation(len(asked))[: MAX_QUERIES["validation" if validation else "test"]]
        documents = encode(known)
        return encode([asked[i] for i in chosen]), documents, documents, None
    known = [dataset.train.table[i] for i in np.unique(dataset.train.columns[:, 1])]
    if not validation:  # as a run fits its compressions
        known = [known[i] for i in rng.permutation(len(known))[:MAX_FIT_ROWS]]
    fitted = encode(known)
    if validation:
        pairs = dataset.validation.columns[: MAX_QUERIES["validation"]]
        table = dataset.validation.table
        judgments = np.stack([np.arange(len(pairs)), len(known) + np.arange(len(pairs)), np.ones(len(pairs), int)], 1)
        documents = np.concatenate([fitted, encode([table[i] for i in pairs[:, 1]])])
        return encode([table[i] for i in pairs[:, 0]]), documents, fitted, judgments
    most, judgments = MAX_QUERIES["test"], dataset.test.judgments
    queries, documents = encode(dataset.test.queries[:most]), encode(dataset.test.documents)
    return queries, documents, fitted, judgments[judgments[:, 0] < most]


def of_collection(folder: str, name: str) -> Vectors:
    """What a model as it is makes of a BEIR folder."""
    from mrl_jax.zero_shot import collections, models

    collection, model = collections.read(folder), models.find(name)
    queries, documents = (model.embed(collection, side) for side in (collection.first, collection.second))
    return queries, documents, documents, collection.truth


def recall(vectors: Vectors, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each query the share of its K nearest documents that are among the SHORTLIST nearest by `first`, `second`."""
    queries, documents, shares = vectors[0], vectors[1], []
    first, second = unit(first), unit(second)
    for start in range(0, len(queries), 64):
        some = slice(start, start + 64)
        near = np.argpartition(-(queries[some] @ documents.T), K, axis=1)[:, :K]
        kept = np.argpartition(-(first[some] @ second.T), SHORTLIST, axis=1)[:, :SHORTLIST]
        shares += [len(np.intersect1d(a, b)) / K for a, b in zip(near, kept, strict=True)]
    return np.array(shares)


def ndcg(vectors: Vectors, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """nDCG@10 per query, by the judgments."""
    from mrl_jax import evaluate

    scores = evaluate.search(first, second, vectors[3], [first.shape[1]])
    return next(np.asarray(score.outcomes) for score in scores if score.metric == "ndcg@10")


def unit(z: np.ndarray) -> np.ndarray:
    return (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def measure(vectors: Vectors, dims: tuple[int, ...], adaptors: bool) -> dict[str, Any]:
    """Per arm and dim the outcomes of each query."""
    from mrl_jax.evaluate import compress
    from mrl_jax.search import adapt

    queries, documents, fitted, judgments = vectors
    vectors = unit(queries), unit(documents), unit(fitted), judgments
    queries, documents, fitted, _ = vectors
    maps: dict[str, Any] = {"prefix": lambda z: z}
    for name in ("pca", "rotated"):
        maps[name] = compress.fit(name, fitted, 0).apply
    found: dict[str, Any] = {}
    for seed in range(SEEDS if adaptors else 0):
        adaptor = adapt.fit(fitted, dims, seed=seed)
        print(adaptor.summary())
        maps[f"adaptor {seed}"] = lambda z, matrix=adaptor.matrix: z @ matrix
        found[f"adaptor {seed}"] = {"kept": adaptor.kept}
    for name, apply in maps.items():
        first, second = apply(queries), apply(documents)
        found[name] = found.get(name, {})
        for m in dims:
            of_dim = {"recall": recall(vectors, first[:, :m], second[:, :m])}
            if judgments is not None:
                of_dim["ndcg"] = ndcg(vectors, first[:, :m], second[:, :m])
            found[name][str(m)] = of_dim
    if judgments is not None:
        found["full"] = {str(queries.shape[1]): {"ndcg": ndcg(vectors, queries, documents)}}
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [round(float(x), 4) for x in value]
    return {key: rounded(x) for key, x in value.items()} if isinstance(value, dict) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run on texts")
    parser.add_argument("--arm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", action="store_true", help="queries of the validation split")
    parser.add_argument("--collection", help="a BEIR folder")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--dims", default="64")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dims = tuple(int(m) for m in options.dims.split(","))
    if options.collection:
        found = measure(of_collection(options.collection, options.model), dims, adaptors=True)
    else:
        found = measure(of_run(options.run, options.arm, options.seed, options.validation), dims, adaptors=False)
    for name, of_arm in found.items():
        for m, of_dim in of_arm.items():
            if m != "kept":
                means = ", ".join(f"{key} {values.mean():.4f}" for key, values in of_dim.items())
                also = f", recall of the first 256 {of_dim['recall'][:256].mean():.4f}" if "recall" in of_dim else ""
                print(f"{name:>12} {m:>4}: {means}{also}")
    if options.json:
        options.json.write_text(json.dumps(rounded(found)) + "\n")


if __name__ == "__main__":
    main()

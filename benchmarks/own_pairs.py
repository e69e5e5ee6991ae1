"""What the defaults are worth on a user's own pairs of texts: a search trained on them against BM25.

    python benchmarks/own_pairs.py [--data NAME …] [--encoder bag static] [--json FILE]

Each set is trained on with `data=pairs data.train=… data.test=… loss.name=info_nce`, without any other setting but the
encoder. The other side is BM25, `evaluation.baseline=bm25`. Both rank the same documents, those of the test pairs, for
the same queries by nDCG@10; differences in points have a 95 % interval of a paired bootstrap over the queries. Recipes
were chosen on the validation splits of the sets marked `development`.
"""

import argparse
import hashlib
import itertools
import json
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from own_data import ICD, cpu_seconds, difference, member, trained, verses

from mrl_jax import data

Pair = tuple[str, str]  # query and document

MAX_PAIRS = 12_000
DIMS = (256, 64, 16)


def terms() -> Iterator[Pair]:
    """Other names of diagnoses → how ICD-10-CM describes them."""
    for diagnosis in ElementTree.parse(member(ICD)).getroot().iter("diag"):
        for note in diagnosis.iterfind("inclusionTerm/note"):
            yield note.text or "", diagnosis.findtext("desc", "")


def senses() -> Iterator[Pair]:
    """Definitions and examples of WordNet → words of the synset and its hypernym."""
    train = data.load(data.DataConfig(source="wordnet", task="pairs")).train
    for query, document, *_ in train.columns[:30_000].tolist():
        yield str(train.table[query]), str(train.table[document])


def verses_and_next() -> Iterator[Pair]:
    """Verses → the verse that follows in the same book."""
    rows = list(verses())
    for (one, book), (other, same) in itertools.pairwise(rows):
        if book == same:
            yield one, other


SETS: dict[str, tuple[Callable[[], Iterable[Pair]], bool]] = {  # with whether recipes were chosen on it
    "terms": (terms, True),
    "senses": (senses, True),
    "verses": (verses_and_next, False),
}


def divided(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Train and test, 4 to 1 by a hash of the query."""

    def key(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()

    clean = {(" ".join(a.split()), " ".join(b.split())) for a, b in pairs}
    kept = sorted((pair for pair in clean if all(pair) and pair[0] != pair[1]), key=lambda pair: key("\t".join(pair)))
    kept = kept[:MAX_PAIRS]
    return [p for p in kept if key(p[0])[-1] % 5], [p for p in kept if not key(p[0])[-1] % 5]


def measure(name: str, encoder: str) -> dict[str, object]:
    """The record of one set and encoder: nDCG@10 in percent, differences with their intervals."""
    read, development = SETS[name]
    train, test = divided(read())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for part, pairs in (("train", train), ("test", test)):
            lines = (json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in pairs)
            (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        words = ["data=pairs", "data.train=train.jsonl", "data.test=test.jsonl", "loss.name=info_nce", "arms=[mrl]"]
        before = cpu_seconds()
        run = trained(folder, *words, f"encoder={encoder}", "evaluation.baseline=bm25")
        seconds = cpu_seconds() - before
        recipe = json.loads((run / "recipe.json").read_text())
        outcomes = {}
        for path in (run / "predictions").glob("*-seed0.npz"):
            with np.load(path) as arrays:
                found = {key: arrays[key] for key in arrays if re.match(r"test/ndcg@10/", key)}
            outcomes[path.name.partition("-")[0]] = {int(key.rpartition("/")[2]): x for key, x in found.items()}
    bm25 = outcomes["bm25"][256]
    record: dict[str, object] = {"data": name, "development": development, "encoder": encoder, "train": len(train)}
    record |= {"queries": len(bm25), "bm25": 100 * float(bm25.mean()), "recipe": recipe["recipe"]}
    record |= {"trials": recipe["trials"], "cpu_seconds": seconds}
    for dim in DIMS:
        ours = outcomes["mrl"][dim]
        record |= {f"{dim}": 100 * float(ours.mean()), f"{dim} − bm25": difference(ours, bm25)}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="The defaults on pairs of texts against BM25")
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS), metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--encoder", nargs="+", choices=("bag", "static"), default=("bag", "static"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records to this file")
    options = parser.parse_args()
    records = []
    for name in options.data:
        for encoder in options.encoder:
            records.append(measure(name, encoder))
            print(json.dumps(records[-1], ensure_ascii=False), flush=True)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

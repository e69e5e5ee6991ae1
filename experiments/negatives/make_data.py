"""The files of experiments/negatives: WordNet's pairs, and its test as a folder in the layout of BEIR.

    python experiments/negatives/make_data.py write FOLDER
    python experiments/negatives/make_data.py without-negatives MINED OUT

The first writes FOLDER/train.jsonl (anchor, positive) and FOLDER/corpus.jsonl, queries.jsonl and qrels/test.tsv; the
second the pairs of a mined file without their negatives, so that both conditions have the same pairs.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from mrl_jax.data import DataConfig, PairDataset, Ranking, load


def write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """JSONL, a row per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write(folder: Path) -> None:
    """Training pairs with those of validation, which `data=beir` cuts again; and the test."""
    data = load(DataConfig("wordnet", task="pairs", validation_fraction=0.0))
    assert isinstance(data, PairDataset)
    assert isinstance(data.test, Ranking)
    texts, test = list(data.train.table), data.test
    pairs = ({"anchor": texts[a], "positive": texts[b]} for a, b in data.train.columns[:, :2])
    write_lines(folder / "train.jsonl", pairs)
    for name, ids, side in (
        ("corpus", test.document_ids, test.documents),
        (
            "queries",
            [f"query-{name}" for name in test.query_ids],
            test.queries,
        ),  # an id of a document would be left out
    ):
        write_lines(folder / f"{name}.jsonl", ({"_id": i, "text": str(t)} for i, t in zip(ids, side, strict=True)))
    lines = [f"query-{test.query_ids[q]}\t{test.document_ids[d]}\t{gain}" for q, d, gain in test.judgments]
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def without_negatives(mined: Path, out: Path) -> None:
    """The pairs of a mined file, in its order."""
    rows = (json.loads(line) for line in mined.read_text(encoding="utf-8").splitlines())
    write_lines(out, ({"anchor": row["anchor"], "positive": row["positive"]} for row in rows))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", folder]:
            write(Path(folder))
        case ["without-negatives", mined, out]:
            without_negatives(Path(mined), Path(out))
        case _:
            sys.exit(__doc__)

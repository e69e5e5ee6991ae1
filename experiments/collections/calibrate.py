"""How well does agreement with the full width predict the loss of nDCG@10? Writes the points and the calibration.

    python experiments/collections/calibrate.py minilm wordllama --on cranfield cisi cacm

To the folders of judged collections come three that are made of data sets which a package registry has:

    wordnet   definitions → synsets (the test of data=wordnet_pairs), 5,000 of its documents
    sts       sentences → second sentences of the STS benchmark; relevant from a score of 4 on
    icd       terms → diagnoses of ICD-10-CM that the classification files them under, 5,000 of its diagnoses

Per model, collection, way of storing and dim, agreement.csv (beside this file) has the share of the full width's
nDCG@10 that is kept, and overlap@10 with the full width by the judged queries and by documents held out as queries.
`mrl_jax/zero_shot/calibration.json` is what `--unjudged` predicts from.
"""

import argparse
import csv
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mrl_jax.data.base import Pairs, Ranking
from mrl_jax.data.config import DataConfig
from mrl_jax.data.readers.artefacts import Artefact, fetch
from mrl_jax.data.sources import stsb, wordnet_pairs
from mrl_jax.system.files import cache_folder
from mrl_jax.zero_shot import collections, models, prediction, scores, unjudged

POINTS = Path(__file__).with_name("agreement.csv")
QUERIES, DOCUMENTS = 300, 5000  # at most, of the collections that are made
DIMS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
STORED = {"float32": "", "int8": "int8_", "1 bit": "bit_"}
COLUMNS = ("model", "collection", "stored", "dim", "share", "overlap", "overlap_of_documents")
ICD = Artefact(
    "simple-icd-10-cm",
    "1.5.0",
    "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    ("simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml",),
)

Answers = list[tuple[str, str, int]]  # query, document, gain


def wordnet() -> tuple[Answers, Iterable[str]]:
    test = wordnet_pairs.read(DataConfig("wordnet_pairs")).test
    assert isinstance(test, Ranking)
    queries, documents = list(test.queries), list(test.documents)
    return [(queries[q], documents[d], 1) for q, d, _ in test.judgments.tolist()], documents


def sts() -> tuple[Answers, Iterable[str]]:
    data = stsb.read(DataConfig("stsb"))
    answers: Answers = []
    others = []
    for part in (data.validation, data.test):
        assert isinstance(part, Pairs)
        assert part.scores is not None
        texts = list(part.table)
        for (first, second), score in zip(part.columns.tolist(), part.scores.tolist(), strict=True):
            others.append(texts[second])
            if score >= 4:
                answers.append((texts[first], texts[second], int(score) - 3))
    return answers, others


def icd() -> tuple[Answers, Iterable[str]]:
    root = ElementTree.parse(fetch(ICD, cache_folder(None)) / ICD.members[0]).getroot()
    answers: Answers = []
    others = []
    for diagnosis in root.iter("diag"):
        name = diagnosis.findtext("desc", "")
        others.append(name)
        answers += [("".join(note.itertext()).strip(), name, 1) for note in diagnosis.findall("inclusionTerm/note")]
    return answers, others


MADE: dict[str, Callable[[], tuple[Answers, Iterable[str]]]] = {"wordnet": wordnet, "sts": sts, "icd": icd}


def make(folder: Path, answers: Answers, others: Iterable[str]) -> Path:
    """A folder in the layout of BEIR: queries that are no documents, their answers, and other documents."""
    rng = np.random.default_rng(0)
    names = dict.fromkeys([*(document for _, document, _ in answers), *others])
    texts = [query for query in dict.fromkeys(query for query, _, _ in answers) if query not in names]
    queries = [texts[i] for i in sorted(rng.permutation(len(texts))[:QUERIES])]
    query_row = {text: row for row, text in enumerate(queries)}
    judged = [answer for answer in dict.fromkeys(answers) if answer[0] in query_row]
    documents = list(dict.fromkeys(document for _, document, _ in judged))
    rest = [name for name in names if name not in set(documents)]
    documents += [rest[i] for i in rng.permutation(len(rest))[: max(0, DOCUMENTS - len(documents))]]
    document_row = {text: row for row, text in enumerate(documents)}
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": f"{name[0]}{row}", "text": text}) + "\n" for row, text in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    lines = [f"q{query_row[query]}\tc{document_row[document]}\t{gain}\n" for query, document, gain in judged]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def points(candidate: models.Candidate, folder: str, out: str) -> list[tuple[object, ...]]:
    """The rows of a model on a collection, without those of the full width in float32."""
    dims = [dim for dim in DIMS if dim < candidate.width] + [candidate.width]
    collection, corpus = collections.read(folder, keep_own=True), unjudged.read(f"{folder}/corpus.jsonl", None, False)
    judged, held_out = (scores.evaluate_on(candidate, one, dims, out).rows for one in (collection, corpus))
    values, of_documents = (
        {(r.metric, r.dim): r.value for r in rows if r.arm != "bm25"} for rows in (judged, held_out)
    )
    whole = values["ndcg@10", candidate.width]
    rows = []
    for stored, prefix in STORED.items():
        for dim in dims:
            share, overlap = values[f"{prefix}ndcg@10", dim] / whole, values[f"{prefix}overlap@10", dim]
            if stored != "float32" or dim < candidate.width:
                other = of_documents[f"{prefix}overlap@10", dim]
                numbers = (f"{number:.4f}" for number in (share, overlap, other))
                rows.append((candidate.name, collection.name, stored, dim, *numbers))
    return rows


def curves(path: Path, column: str) -> prediction.Curves:
    """Overlaps in a column of agreement.csv and shares, by collection and model."""
    by_name: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = row["collection"], row["model"]
            by_name.setdefault(key, []).append((float(row[column]), float(row["share"])))
    return {key: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for key, pairs in by_name.items()}


def fit(path: Path) -> dict[str, dict[str, object]]:
    """The content of calibration.json, from agreement.csv."""
    content: dict[str, dict[str, object]] = {}
    for queries, column in (("queries", "overlap"), ("documents", "overlap_of_documents")):
        measured = curves(path, column)
        made, coverage = prediction.calibrate(measured), prediction.leave_one_out(measured)
        print(f"{queries}: left out in turn, of each collection's shares lie in the interval:", coverage)
        exponents = {name: {m: round(x, 4) for m, x in of.items()} for name, of in made.log_exponents.items()}
        content[queries] = {
            "log_exponents": exponents,
            "spread": round(made.spread, 4),
            "coverage": {name: round(share, 4) for name, share in coverage.items()},
        }
    return content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="none: fit to the points that there are")
    parser.add_argument("--on", nargs="+", default=[], help="folders of judged collections")
    options = parser.parse_args()
    if options.models:
        rows: list[tuple[object, ...]] = []
        with tempfile.TemporaryDirectory() as place:
            folders = [*options.on, *(str(make(Path(place) / name, *read())) for name, read in MADE.items())]
            for name in options.models:
                candidate = models.find(name)
                candidate = dataclasses.replace(candidate, arms={"truncated": candidate.arms["truncated"]})
                for folder in folders:
                    rows += points(candidate, folder, f"{place}/results")
        with POINTS.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    prediction.FILE.write_text(json.dumps(fit(POINTS), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

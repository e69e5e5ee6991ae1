"""A search collection in the layout of BEIR (Thakur et al. 2021, arXiv:2104.08663), read from a folder.

    corpus.jsonl      {"_id": "4983", "title": "Microstructural development", "text": "Alterations of …"}
    queries.jsonl     {"_id": "0", "text": "0-dimensional biomaterials lack inductive properties."}
    qrels/test.tsv    query-id, corpus-id and score with tabs between; likewise train.tsv and dev.tsv

The test is a search of the whole corpus. A document is its title and its text with a space between. Training pairs
are the judgments above 0 of train.tsv, or those of `data.train`, a file as `data=pairs` reads it; validation pairs are
the judgments above 0 of dev.tsv.

Published collections are not free of slips, so a line is only refused where its meaning is unclear. As in BEIR's own
loader an empty document is a document, and of lines with the same ids the last counts. Judgments of unknown queries or
documents are left out. Each kind of slip is counted on stderr (`Slips`).

A document with the id of a query is that query's own (`Ranking.own`): in ArguAna and Quora the queries are documents.
By BEIR's rule, `ignore_identical_ids`, it is no candidate for the query, even if it is judged.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mrl_jax.data.base import PairDataset, Pairs, Ranking
from mrl_jax.data.config import DataConfig
from mrl_jax.data.pair_ops import build_pairs, separate_anchors
from mrl_jax.data.readers.delimited import tab_fields
from mrl_jax.data.readers.records import Record, abbreviate, json_records, lines, need_unicode
from mrl_jax.data.relevance import own_documents
from mrl_jax.data.sources.pairs import no_pairs, read_file
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import need_file, need_folder, path_of

COLUMNS = ("query-id", "corpus-id", "score")
GAIN_LIMIT = 1 << 31  # gains are int32

Texts = dict[str, str]  # id: text
Judgments = dict[tuple[str, str], int]  # (query id, document id): gain ≥ 0


@dataclass
class Slips:
    """What is put up with in a file: of each kind how many, and the id and the line of the first."""

    path: Path
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str, place: str) -> None:
        """Count one; `kind` says what it is and what becomes of it, in words that fit one and many."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, f"{abbreviate(name)}, {place}")

    def say(self, total: int, unit: str) -> None:
        """Print a line per kind to stderr, with its number of the `total`."""
        for kind, count in self.counts.items():
            message = f"{self.path}: {count:,} of {total:,} {unit}: {kind} (the first is {self.first[kind]})"
            print(message, file=sys.stderr, flush=True)


def read(config: DataConfig) -> PairDataset:
    """Read the folder `data.path`; validation is empty if there is no qrels/dev.tsv.

    Queries of the test without a relevant document are left out, and training queries that the test has too.
    Raises `UserError` naming the file and the line of the first thing that is wrong.
    """
    if config.path is None:
        raise UserError("data=beir needs data.path, a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    folder, queries, documents = read_texts("data.path", config.path)

    def qrels(name: str) -> Path:
        return folder / "qrels" / f"{name}.tsv"

    def part(name: str) -> Judgments:
        return judgments(qrels(name), queries, documents)

    if config.train is not None:
        train = read_file("beir", "data.train", config.train)
    else:
        need_file(qrels("train"), qrels("train"), "; give a file of pairs in data.train instead")
        train = relevant_pairs(qrels("train"), part("train"), queries, documents)
    if not len(train):
        raise UserError(f"{qrels('train')} has no judgment above 0, so there is nothing to train on")
    validation = no_pairs()
    if qrels("dev").is_file():
        validation = relevant_pairs(qrels("dev"), part("dev"), queries, documents)
    test = search(qrels("test"), part("test"), queries, documents)
    return separate_anchors(PairDataset(folder.resolve().name, "text", train, validation, test))


def read_test(key: str, name: str, part: str = "test") -> Ranking:
    """The judgments of one part of the folder `name`, which needs no others; `key` stands for it in messages."""
    folder, queries, documents = read_texts(key, name)
    qrels = folder / "qrels" / f"{part}.tsv"
    return search(qrels, judgments(qrels, queries, documents), queries, documents)


def read_texts(key: str, name: str) -> tuple[Path, Texts, Texts]:
    """The folder `name`, its queries and its documents."""
    folder = path_of(key, name)
    need_folder(f"{key}={name}", folder)
    documents = texts(folder / "corpus.jsonl", titled=True)
    return folder, texts(folder / "queries.jsonl", titled=False), documents


def texts(path: Path, titled: bool) -> Texts:
    """The texts of corpus.jsonl (`titled`) or queries.jsonl by id, in file order."""
    need_file(path, path)
    texts_by_id: Texts = {}
    slips, lines_read = Slips(path), 0
    for place, record in json_records(path):
        name = record.get("_id")
        if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
            raise UserError(f"{path}, {place}: the row has no _id")
        name = str(name)
        need_unicode(path, place, "_id", name)
        if name in texts_by_id:
            slips.add("the _id stands in an earlier line too, and the last such line counts", name, place)
        texts_by_id[name] = text_of(path, place, record, titled)
        if not texts_by_id[name]:
            slips.add("no text, kept as an empty one", name, place)
        lines_read += 1
    if not any(texts_by_id.values()):
        raise UserError(f"{path} is empty" if not texts_by_id else f"{path} has no line with a text")
    slips.say(lines_read, "lines")
    return texts_by_id


def text_of(path: Path, place: str, record: Record, titled: bool) -> str:
    """Title, if there is one, and text of a line; empty where both are empty or null."""
    if "text" not in record:
        raise UserError(f"{path}, {place}: the row has no text")
    text = "" if record["text"] is None else record["text"]
    title = (record.get("title") or "") if titled else ""
    for key, value in (("text", text), ("title", title)):
        if not isinstance(value, str):
            raise UserError(f"{path}, {place}: {key} must be a string, got {abbreviate(value)}")
    whole = f"{title} {text}".strip()
    need_unicode(path, place, "text", whole)
    return whole


def judgments(path: Path, queries: Texts, documents: Texts) -> Judgments:
    """The lines of a qrels file whose ids are known, in file order; a score below 0 counts as 0."""
    need_file(path, path)
    gains: Judgments = {}
    slips, lines_read = Slips(path), 0
    for number, line in lines(path):
        fields = [field.strip() for field in tab_fields(line, len(COLUMNS))]
        if fields == [""] or (number == 1 and is_header(fields)):
            continue
        place = f"line {number}"
        if len(fields) != len(COLUMNS):
            raise UserError(f"{path}, {place}: {len(fields)} fields; needed are {', '.join(COLUMNS)} with tabs between")
        query, document, score = fields
        gain = gain_of(path, place, score)
        lines_read += 1
        if query not in queries:
            slips.add("not in queries.jsonl, left out", query, place)
        elif document not in documents:
            slips.add("not in corpus.jsonl, left out", document, place)
        else:
            earlier = gains.get((query, document), gain)
            if (query, document) in gains:
                what = "judged in an earlier line too" if earlier == gain else "judged otherwise in an earlier line"
                slips.add(f"{what}, and the last such line counts", f"{query} {document}", place)
            gains[query, document] = gain
    slips.say(lines_read, "judgments")
    return gains


def is_header(fields: list[str]) -> bool:
    """Whether the first line of a qrels file names its columns, by whatever names: its last field is no number."""
    try:
        float(fields[-1])
    except ValueError:
        return True
    return False


def gain_of(path: Path, place: str, score: str) -> int:
    """The gain of a judgment: its score, or 0 where that is below."""
    try:
        gain = float(score)  # data frames write 1 as 1.0
    except ValueError:
        gain = float("nan")
    if not gain.is_integer() or abs(gain) >= GAIN_LIMIT:
        raise UserError(f"{path}, {place}: the score must be a whole number below 2^31, got {abbreviate(score)}")
    return max(int(gain), 0)


def relevant_pairs(path: Path, judged: Judgments, queries: Texts, documents: Texts) -> Pairs:
    """The pairs of a query and a document of gain above 0, except those with an empty text."""
    relevant = [(queries[query], documents[document]) for (query, document), gain in judged.items() if gain]
    pairs = [pair for pair in relevant if all(pair)]
    if empty := len(relevant) - len(pairs):
        print(f"{path}: left out {empty:,} of {len(relevant):,} pairs: a text is empty", file=sys.stderr, flush=True)
    return build_pairs(list(zip(*pairs, strict=True))) if pairs else no_pairs()


def search(path: Path, judged: Judgments, queries: Texts, documents: Texts) -> Ranking:
    """The search of the whole corpus for every judged query that has a relevant document."""
    asked = {query for query, _ in judged}
    answered = dict.fromkeys(query for (query, _), gain in judged.items() if gain)
    query_row = {query: row for row, query in enumerate(answered)}
    if not query_row:
        raise UserError(f"{path} names no relevant document, so there is nothing to be tested on")
    if unanswered := len(asked) - len(query_row):
        print(f"left out {unanswered} of {len(asked)} test queries: no relevant document", file=sys.stderr, flush=True)
    document_row = {document: row for row, document in enumerate(documents)}
    rows = [(query_row[q], document_row[d], gain) for (q, d), gain in judged.items() if q in query_row]
    return Ranking(
        queries=[queries[query] for query in query_row],
        documents=list(documents.values()),
        judgments=np.array(rows, np.int32),
        query_ids=list(query_row),
        document_ids=list(documents),
        own=own_documents(query_row, documents),
    )

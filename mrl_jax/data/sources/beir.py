"""A search collection in the layout of BEIR (Thakur et al. 2021, arXiv:2104.08663), read from a folder.

    corpus.jsonl      {"_id": "4983", "title": "Microstructural development", "text": "Alterations of …"}
    queries.jsonl     {"_id": "0", "text": "0-dimensional biomaterials lack inductive properties."}
    qrels/test.tsv    query-id, corpus-id and score with tabs between; likewise train.tsv and dev.tsv

The test is a search of the whole corpus. A document is its title and its text with a space between. Training pairs
are the judgments above 0 of train.tsv, or those of `data.train`, a file as `data=pairs` reads it; validation pairs are
the judgments above 0 of dev.tsv.
"""

import sys
from pathlib import Path

import numpy as np

from mrl_jax.data.base import DataConfig, PairDataset, Pairs, Ranking
from mrl_jax.data.pair_ops import build_pairs, separate_anchors
from mrl_jax.data.readers.delimited import tab_fields
from mrl_jax.data.readers.records import Record, abbreviate, json_records, lines, need_unicode
from mrl_jax.data.sources.pairs import no_pairs, read_file
from mrl_jax.errors import UserError
from mrl_jax.files import path_of

COLUMNS = ("query-id", "corpus-id", "score")
GAIN_LIMIT = 1 << 31  # gains are int32

Texts = dict[str, str]  # id: text
Judgments = dict[tuple[str, str], int]  # (query id, document id): gain ≥ 0


def read(config: DataConfig) -> PairDataset:
    """Read the folder `data.path`; validation is empty if there is no qrels/dev.tsv.

    Queries of the test without a relevant document are left out, and training queries that the test has too.
    Raises `UserError` naming the file and the line of the first thing that is wrong.
    """
    if config.path is None:
        raise UserError("data=beir needs data.path, a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    folder = path_of("data.path", config.path)
    if not folder.is_dir():
        raise UserError(f"data.path={config.path}: there is no such folder")
    documents = texts(folder / "corpus.jsonl", titled=True)
    queries = texts(folder / "queries.jsonl", titled=False)

    def part(name: str) -> Judgments:
        return judgments(folder / "qrels" / f"{name}.tsv", queries, documents)

    if config.train is not None:
        train = read_file("beir", "data.train", config.train)
    elif not (folder / "qrels" / "train.tsv").is_file():
        raise UserError(f"{folder}/qrels/train.tsv: there is no such file; give a file of pairs in data.train instead")
    else:
        train = relevant_pairs(part("train"), queries, documents)
    if not len(train):
        raise UserError(f"{folder}/qrels/train.tsv has no judgment above 0, so there is nothing to train on")
    has_dev = (folder / "qrels" / "dev.tsv").is_file()
    validation = relevant_pairs(part("dev"), queries, documents) if has_dev else no_pairs()
    test = search(folder / "qrels" / "test.tsv", part("test"), queries, documents)
    return separate_anchors(PairDataset(folder.resolve().name, "text", train, validation, test))


def texts(path: Path, titled: bool) -> Texts:
    """The texts of corpus.jsonl (`titled`) or queries.jsonl by id, in file order."""
    check_file(path)
    texts_by_id: Texts = {}
    for place, record in json_records(path):
        name = record.get("_id")
        if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
            raise UserError(f"{path}, {place}: the row has no _id")
        need_unicode(path, place, "_id", str(name))
        if str(name) in texts_by_id:
            raise UserError(f"{path}, {place}: the _id {abbreviate(name)} stands in an earlier line too")
        texts_by_id[str(name)] = text_of(path, place, record, titled)
    if not texts_by_id:
        raise UserError(f"{path} is empty")
    return texts_by_id


def text_of(path: Path, place: str, record: Record, titled: bool) -> str:
    """Title, if there is one, and text of a line; one of them may be empty."""
    text = record.get("text")
    title = (record.get("title") or "") if titled else ""
    if not isinstance(text, str):
        problem = "the row has no text" if text is None else f"text must be a string, got {abbreviate(text)}"
        raise UserError(f"{path}, {place}: {problem}")
    if not isinstance(title, str):
        raise UserError(f"{path}, {place}: title must be a string, got {abbreviate(title)}")
    whole = f"{title} {text}".strip()
    if not whole:
        raise UserError(f"{path}, {place}: the row has no text")
    need_unicode(path, place, "text", whole)
    return whole


def judgments(path: Path, queries: Texts, documents: Texts) -> Judgments:
    """The lines of a qrels file in file order; a score below 0 counts as 0."""
    check_file(path)
    gains: Judgments = {}
    for number, line in lines(path):
        fields = [field.strip() for field in tab_fields(line, len(COLUMNS))]
        if fields == [""] or (number == 1 and fields[-1] == COLUMNS[-1]):
            continue
        where = f"{path}, line {number}"
        if len(fields) != len(COLUMNS):
            raise UserError(f"{where}: {len(fields)} fields; needed are {', '.join(COLUMNS)} with tabs between")
        query, document, score = fields
        if query not in queries:
            raise UserError(f"{where}: the query {abbreviate(query)} is not in queries.jsonl")
        if document not in documents:
            raise UserError(f"{where}: the document {abbreviate(document)} is not in corpus.jsonl")
        if (query, document) in gains:
            raise UserError(f"{where}: query {query} and document {document} are judged in an earlier line too")
        try:
            gain = int(score)
        except ValueError:
            gain = GAIN_LIMIT
        if abs(gain) >= GAIN_LIMIT:
            raise UserError(f"{where}: the score must be a whole number below 2^31, got {abbreviate(score)}")
        gains[query, document] = max(gain, 0)
    return gains


def check_file(path: Path) -> None:
    """Raise `UserError` unless there is such a file."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")


def relevant_pairs(judged: Judgments, queries: Texts, documents: Texts) -> Pairs:
    """The pairs of a query and a document of gain above 0."""
    pairs = [(queries[query], documents[document]) for (query, document), gain in judged.items() if gain]
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
    )

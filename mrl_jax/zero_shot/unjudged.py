"""A corpus without judgments as a collection: its metrics compare rankings with those of a model's full width.

The corpus is a file of texts with or without ids, titles before texts, or a folder with corpus.jsonl and perhaps
queries.jsonl. Without queries, some of the documents stand for them, none of which ranks itself. Copies of a text are
one document, as no ranking can tell them apart.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mrl_jax.data.readers.texts import Id, Inputs
from mrl_jax.system.console import say
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import path_of
from mrl_jax.zero_shot.collections import KEY, Collection, Side

MAX_HELD_OUT = 500  # documents that stand for queries
MIN_DOCUMENTS = 20  # of fewer, ten of the others are found by chance too often
NOBODY_JUDGED = np.zeros((0, 3), np.int32)


def read(name: str, queries: str | None, keep_own: bool, seed: int = 0) -> Collection:
    """The corpus of a file or a folder with the queries of another file, or without. Raises `UserError`."""
    path = path_of(KEY, name)
    corpus = str(path / "corpus.jsonl") if path.is_dir() else name
    if queries is None and path.is_dir() and (path / "queries.jsonl").is_file():
        queries = str(path / "queries.jsonl")
    texts, ids = _read(KEY, corpus)
    row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    rows = np.array([row_of[text] for text in texts])
    documents, (_, firsts) = list(row_of), np.unique(rows, return_index=True)
    names = [ids[row] for row in firsts]
    names = [str(row if name is None else name) for row, name in zip(firsts, names, strict=True)]
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"{KEY}={corpus}: the id {repeated[0]} stands before several texts; ids are unique")
    if copies := len(texts) - len(documents):
        say(f"{corpus}: {copies:,} of {len(texts):,} documents have the text of an earlier one and are left out")
    if len(documents) < MIN_DOCUMENTS:
        raise UserError(f"{KEY}={corpus} has {len(documents)} distinct documents; needed are at least {MIN_DOCUMENTS}")
    own: np.ndarray | None
    if queries is None:
        own = _hold_out(documents, seed)
        first = Side("documents", [documents[row] for row in own[:, 1]], [names[row] for row in own[:, 1]], "query")
        say(f"{corpus}: {len(own):,} of the documents stand for queries, each without itself (--queries gives others)")
    else:
        asked, asked_ids = _read_queries(queries)
        own = None if keep_own else _own(asked, asked_ids, texts, ids, rows)
        if own is not None and len(own):
            count = f"{len(np.unique(own[:, 0])):,} of {len(asked):,} queries"
            say(f"{queries}: {count} are documents and do not rank their own (--keep-identical-ids lets them)")
        first_names = [str(row if name is None else name) for row, name in enumerate(asked_ids)]
        first = Side("queries", asked, first_names, "query")
    second = Side("documents", documents, names, "document")
    stem = path.resolve().name if path.is_dir() else path.stem
    return Collection(stem, path, first, second, NOBODY_JUDGED, own)


def _read(key: str, name: str) -> tuple[list[str], list[Id]]:
    texts, ids = Inputs(key, name, "text", titled=True).read()
    return [text.strip() for text in texts], ids


def _read_queries(name: str) -> tuple[list[str], list[Id]]:
    """The queries of a file that are not empty, with their ids."""
    texts, ids = _read("--queries", name)
    rows = [row for row, text in enumerate(texts) if text]
    if not rows:
        raise UserError(f"--queries={name} has no query with a text")
    if empty := len(texts) - len(rows):
        say(f"{name}: {empty:,} of {len(texts):,} queries have no text and are left out")
    return [texts[row] for row in rows], [ids[row] for row in rows]


def _hold_out(documents: Sequence[str], seed: int) -> np.ndarray:
    """Documents drawn as queries, int32 [m, 2]: row of the query and of itself."""
    rows = [row for row, text in enumerate(documents) if text]
    count = min(MAX_HELD_OUT, len(rows))
    drawn = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
    return np.stack([np.arange(count), drawn], axis=1).astype(np.int32)


def _own(
    queries: Sequence[str], query_ids: Sequence[Id], texts: Sequence[str], ids: Sequence[Id], rows: np.ndarray
) -> np.ndarray:
    """Row of a query and of the document that it is itself, int32 [m, 2]: the one of its id or, where some text has no
    id, of its text (`EvaluationConfig.ignore_identical_ids`); `rows` are those of the documents that stay."""
    by_id = None not in (*query_ids, *ids)
    keys, others = ([str(one) for one in query_ids], [str(one) for one in ids]) if by_id else (queries, texts)
    rows_of: dict[str, set[int]] = {}
    for key, row in zip(others, rows.tolist(), strict=True):
        rows_of.setdefault(key, set()).add(row)
    pairs = [(query, row) for query, key in enumerate(keys) for row in sorted(rows_of.get(key, ()))]
    return np.array(pairs, np.int32).reshape(-1, 2)

"""Collections that a model is evaluated on without having been trained on them.

a folder    a search in the layout of BEIR: corpus.jsonl, queries.jsonl and qrels/test.tsv; or labelled texts,
            train.* and test.*
a file      FOLDER/qrels/dev.tsv: that search with other judgments than those of the test (MS MARCO's are of dev); else
            pairs as `data=pairs` reads them: with scores, how alike two texts are; without, a search of the others
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrl_jax import evaluate
from mrl_jax.data import DataConfig, Dataset, Pairs, Ranking, pair_ops
from mrl_jax.data.cuts import cut
from mrl_jax.data.disk_cache import texts_digest
from mrl_jax.data.readers.records import FORMATS
from mrl_jax.data.sources import beir, files, pairs
from mrl_jax.evaluate import Score, bm25, ranking, refit
from mrl_jax.evaluate.compress import Compression
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import path_of
from mrl_jax.tasks.pairs import Judged, say_own

KEY = "--on"
BM25_K1, BM25_B = 0.9, 0.4  # as in the published baselines of BEIR (Thakur et al. 2021), so that the line is theirs
SIDES = ("queries", "documents", "first", "second", "test", "train")  # of searches, scored pairs and labelled texts


class Side(NamedTuple):
    """The texts on one side of a collection: queries or documents, or the first or second texts of pairs."""

    name: str  # in messages, and in files of vectors
    texts: Sequence[str]
    ids: Sequence[str]
    role: str | None  # of the prompt before them


class Labelled(NamedTuple):
    """The embeddings of labelled texts: `first` to classify, `second` to learn from."""

    first: np.ndarray  # [n, D]
    second: np.ndarray  # [N, D]
    labels: np.ndarray  # int32 [n]
    known: np.ndarray  # int32 [N]
    classes: int

    def compressed(self, compression: Compression) -> "Labelled":
        return self._replace(first=compression.apply(self.first), second=compression.apply(self.second))

    def scores(self, dims: Sequence[int]) -> Iterator[Score]:
        """Nearest neighbours among the known texts, and a ridge regression on nine tenths of them, whose penalty the
        others choose."""
        yield from evaluate.nearest(self.first, self.labels, self.second, self.known, dims)
        rows, held_out = cut(self.known, 0.1)
        held_out = held_out if len(held_out) else rows
        fitted = refit.ridge(
            self.second[rows], self.known[rows], self.second[held_out], self.known[held_out], dims, self.classes
        )
        yield from evaluate.accuracy("refit_top1", self.first, self.labels, fitted)

    def stored(self, dims: Sequence[int]) -> Iterator[Score]:
        """Nearest neighbours where the known texts are stored in 8 bits or 1 bit per coordinate."""
        return evaluate.nearest_quantised(self.first, self.labels, self.second, self.known, dims)


@dataclass(frozen=True)
class Collection:
    """Texts to embed, and the truth about them."""

    name: str
    path: Path
    first: Side
    second: Side
    truth: np.ndarray  # int [j, 3] judgments, none where nobody judged; or float32 [n] scores
    own: np.ndarray | None = None
    classes: int = 0  # of labelled texts; `truth` are then the labels of both sides, in their order

    @property
    def is_search(self) -> bool:
        return self.truth.ndim == 2

    @property
    def is_judged(self) -> bool:
        return len(self.truth) > 0

    @property
    def metric(self) -> str:
        """The metric that tables show."""
        if not self.is_search:
            return "knn_top1" if self.classes else "spearman"
        return "ndcg@10" if self.is_judged else "overlap@10"

    def outcomes(self, best: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of a ranking [Q, k] by the judgments; none where there are none."""
        return ranking.outcomes(best, self.truth, len(self.second.texts)) if self.is_judged else {}

    @cached_property
    def bm25(self) -> dict[str, np.ndarray] | None:
        """The metrics of BM25, computed once; None where nothing is searched or judged."""
        if not (self.is_search and self.is_judged):
            return None
        queries, documents, count = self.first.texts, self.second.texts, len(self.second.texts)
        best = bm25.rank(queries, documents, ranking.depth(self.own, count), BM25_K1, BM25_B)
        return self.outcomes(ranking.without_own(best, self.own, count))

    def judged(self, first: np.ndarray, second: np.ndarray) -> "Judged | Labelled":
        """The embeddings of both sides with the truth."""
        if self.classes:
            labels, known = np.split(self.truth, [len(first)])
            return Labelled(first, second, labels, known, self.classes)
        return Judged(first, second, self.truth, self.own)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the texts and the truth."""
        digest = hashlib.sha256(np.ascontiguousarray(self.truth).tobytes())
        for side in (self.first, self.second):
            digest.update(texts_digest(side.texts).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What dataset.json says of the data."""
        sizes = {"train": 0} | {side.name: len(side.texts) for side in (self.first, self.second)}
        return {"name": self.name, "examples": sizes, "fingerprint": {"test": self.fingerprint}}


def read_all(names: Sequence[str], read: Callable[[str], Collection]) -> list[Collection]:
    """The collections of these paths. Raises `UserError` where two would be written to the same folder."""
    by_name: dict[str, Collection] = {}
    for name in names:
        collection = read(name)
        if (other := by_name.get(collection.name)) is not None:
            raise UserError(
                f"{KEY}={name} and {other.path} have the same name, {collection.name}; rename one, or evaluate on one "
                "at a time"
            )
        by_name[collection.name] = collection
    return list(by_name.values())


def read(name: str, keep_own: bool = False) -> Collection:
    """The collection in a folder or a file. Raises `UserError` naming what is wrong."""
    path = path_of(KEY, name)
    if path.is_dir():
        parts = [labelled_part(path, part) for part in ("train", "test")]
        is_search = (path / "corpus.jsonl").exists()
        if any(parts) and not all(parts) and not is_search:
            has, lacks = ("test", "train") if parts[1] else ("train", "test")
            raise UserError(
                f"{KEY}={name} has a file {has}.* and neither {lacks}.*, as labelled texts need, nor corpus.jsonl, as "
                "a search needs"
            )
        if all(parts) and not is_search:
            return of_labels(
                files.read(DataConfig("files", train=str(parts[0]), test=str(parts[1]), streaming=False)), path
            )
        if not (path / "qrels" / "test.tsv").is_file() and (path / "corpus.jsonl").is_file():
            others = [str(Path(name) / "qrels" / file.name) for file in sorted((path / "qrels").glob("*.tsv"))]
            instead = f"; it has others: {KEY} {' '.join(others)}" if others else ""
            raise UserError(
                f"{KEY}={name} has no judgments, qrels/test.tsv{instead}; --unjudged compares its rankings with the "
                "full width's"
            )
        return of_ranking(beir.read_test(KEY, name), path.resolve().name, path, keep_own)
    if not path.exists():
        raise UserError(f"{KEY}={name}: there is no such folder or file")
    if path.parent.name == "qrels" and path.suffix == ".tsv":
        folder = path.parent.parent.resolve()  # judgments may be links to elsewhere
        name = folder.name if path.stem == "test" else f"{folder.name}-{path.stem}"
        return of_ranking(beir.read_test(KEY, str(folder), path.stem), name, folder, keep_own)
    data = pairs.read_file("pairs", KEY, name)
    if data.scores is None:
        return of_ranking(pair_ops.ranking(data), path.stem, path, keep_own)
    return of_scores(data, path.stem, path)


def of_ranking(test: Ranking, name: str, path: Path, keep_own: bool) -> Collection:
    """A search, by BEIR's rule that no query ranks the document of its own id (`evaluate.ranking`); with `keep_own` it
    does, for collections that number both alike."""
    if not keep_own:
        say_own(test, " (--keep-identical-ids lets them)")
    queries = Side("queries", list(test.queries), test.query_ids, "query")
    documents = Side("documents", list(test.documents), test.document_ids, "document")
    return Collection(name, path, queries, documents, test.judgments, None if keep_own else test.own)


def of_scores(test: Pairs, name: str, path: Path) -> Collection:
    """Pairs with scores: neither text is a query."""
    assert test.scores is not None
    texts, ids = list(test.table), [str(row) for row in range(len(test))]
    first, second = (Side(key, [texts[i] for i in rows], ids, None)
                     for key, rows in zip(("first", "second"), test.columns.T, strict=True))  # fmt: skip
    return Collection(name, path, first, second, test.scores)


def labelled_part(folder: Path, part: str) -> Path | None:
    """The file of labelled texts of a part, where a folder has one."""
    return next((file for suffix in FORMATS if (file := folder / f"{part}{suffix}").is_file()), None)


def of_labels(dataset: Dataset, path: Path) -> Collection:
    """Labelled texts: those of the test are classified, by those of train."""
    assert isinstance(dataset.test.inputs, list)
    assert isinstance(dataset.train.inputs, list)
    test, train = (
        Side(name, texts, [str(row) for row in range(len(texts))], None)
        for name, texts in (("test", dataset.test.inputs), ("train", dataset.train.inputs))
    )
    labels = np.concatenate([dataset.test.labels, dataset.train.labels])
    return Collection(path.resolve().name, path, test, train, labels, classes=len(dataset.classes))

"""What the service does with a batch: search, embed, classify, find, add and delete documents, draw the map.

Only the worker's thread calls it. Each kind answers every item on its own terms, so that batches of several clients can
be split again.
"""

import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrl_jax import runs
from mrl_jax.encoders.image_rules import Prepared, rule_of
from mrl_jax.evaluate.nested_classifier import NestedClassifier
from mrl_jax.model import pretrained
from mrl_jax.search import commands, dispatch, pictures
from mrl_jax.search.exact import BIN_ROWS, SPARE_BINS
from mrl_jax.search.index import Document, is_in_folder, open_index
from mrl_jax.search.index.base import unit
from mrl_jax.search.index.exact import ExactIndex
from mrl_jax.search.queries import SearchResults
from mrl_jax.search.service.map import Map, sample_of
from mrl_jax.system import files
from mrl_jax.system.errors import UserError
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training.batches import MASK_INPUTS, PADDED_LENGTHS

MAX_PLANS = 32  # that clients may have programs compiled for
MAX_SHORTLIST = 10_000  # documents that a client's plan may keep
FIRST_K = 10  # k is rounded up to 10, 20, 40, …, so that few programs are compiled
SEARCH_NUMBERS = 1 << 26  # numbers of documents that are read together, about: 256 MB


class Unavailable(UserError):
    """Not the client's mistake: something has to be done about the service."""


class Facts(NamedTuple):
    """What is known of an open index; replaced as a whole, so that any thread may read it."""

    place: str
    kind: str
    documents: int
    width: int
    dims: tuple[int, ...]
    prefix: int
    model: str  # fingerprint
    run: str
    classes: tuple[str, ...]
    classifier_dims: tuple[int, ...]
    prompts: tuple[str, ...]
    writable: bool
    files: dict[str, tuple[int, ...]]  # of the index, as they were when it was opened or changed here
    run_files: dict[str, tuple[int, ...]]  # of the model
    reads: tuple[str, ...] = ("text",)  # what the model reads: texts, images or both
    pictures: str | None = None  # the folder below which the documents lie, where they are pictures

    def changes(self) -> list[str]:
        """A sentence for what has changed on the disk since it was opened."""
        said = []
        if (now := stamps(index_files(self.place))) != self.files:
            said.append(f"the index {self.place} was {'replaced' if replaced(self.files, now) else 'changed'} on disk")
        if stamps(model_files(self.run)) != self.run_files:
            said.append(f"the model's run {self.run} was changed on disk")
        return [f"{sentence}; this service answers from what it opened, restart it" for sentence in said]


def index_files(place: str) -> list[Path]:
    """The files of an index that this service can watch: those of a folder."""
    return [Path(place, name) for name in ("documents.sqlite", "vectors.f32")] if is_in_folder(place) else []


def model_files(run: str) -> list[Path]:
    """The files of a run, or of a model folder, that its models are made of."""
    if run in pretrained.KNOWN:
        return []
    if pretrained.is_run(run):
        names = ["config.yaml", "dataset.json", "tokenizer.json", "checkpoints/*/model/*"]
    else:
        names = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]
    return [path for name in names for path in sorted(Path(run).glob(name))]


def stamps(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Inode, size and time of change of each file; zeros for one that is not there."""
    return {str(path): (files.identity_of(path) or (0, 0, 0))[:3] for path in paths}


def replaced(before: dict[str, tuple[int, ...]], now: dict[str, tuple[int, ...]]) -> bool:
    """Whether other files are where those of `before` were: what is open then is not what a path names."""
    return any(now[name][0] != inode for name, (inode, *_) in before.items())


class FewLengths:
    """A reader of texts whose arrays have one of few lengths, where else each batch would have that of its longest text
    and have a program compiled for it. Padding changes no embedding."""

    def __init__(self, reader: Preprocessor) -> None:
        self._reader = reader
        cut = reader.tokenizer.truncation if reader.tokenizer is not None else None
        self._longest = sys.maxsize if cut is None else int(cut["max_length"])  # there may be no further positions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __call__(self, raw: Any) -> dict[str, Any]:
        inputs = self._reader(raw)
        if not any(name in inputs for name in MASK_INPUTS):
            return inputs
        width = max(array.shape[1] for array in inputs.values())
        length = min(self._longest, next((n for n in PADDED_LENGTHS if n >= width), width))
        return {name: np.pad(array, ((0, 0), (0, max(0, length - width)))) for name, array in inputs.items()}


def given(items: list[Any]) -> Any:
    """Texts, or pictures that are prepared, uint8 [h, w, c] each, as a model takes them."""
    return items if isinstance(items[0], str) else Prepared(np.stack(items))


class Answers:
    """An open index with its model."""

    def __init__(
        self, place: str, run: str | None = None, write: bool = False, batch_size: int = 64, root: str | None = None
    ) -> None:
        """
        Args:
            place: of the index.
            run: where its model's run is now, if it was moved.
            write: whether documents may be added and deleted; nobody else can then write to the index.
            batch_size: texts that are embedded at a time.
            root: where the pictures of the index are now, if they were moved.

        Raises:
            UserError: no index there, an index of another model, or one that another process writes to.
        """
        self.index = open_index(place, write)
        self.model = commands.load_model(self.index, run)
        self._reads, self.rule = pictures.reads(self.model), rule_of(self.model.reader)
        self._root = root or self.index.description.pictures
        if "text" in self._reads:
            self.model.reader = FewLengths(self.model.reader)
        self._writable, self._batch_size, self._place = write, batch_size, place
        name = run or self.index.description.run.rsplit("#", 2)[0]
        # Of a source of a mixture, the run has the model.
        self._run = str(runs.run_of(runs.find(name))[0]) if pretrained.is_run(name) else name
        self._classifiers: dict[Hashable, NestedClassifier] = {}
        try:
            self.model.classifiers()
            self._classes = self.model.classes
        except UserError:  # which /classify then says
            self._classes = ()
        self._plans: set[Hashable] = set()
        self._map: Map | None = None
        self.facts = self._facts()

    def close(self) -> None:
        """Release the index."""
        self.index.close()

    def __call__(self, kind: str, options: Any, items: list[Any]) -> Sequence[Any]:
        """The answer to each item. Raises `UserError`, or `ValueError` for what the library refuses."""
        now = stamps(index_files(self._place))
        if kind in ("search", "upsert", "delete", "map", "find") and replaced(self.facts.files, now):
            raise Unavailable(f"the index {self._place} was replaced on disk; restart the service")
        handlers: dict[str, Callable[[Any, list[Any]], Sequence[Any]]] = {
            "search": self._search, "embed": self._embed, "classify": self._classify, "upsert": self._upsert,
            "delete": self._delete, "map": self._draw, "find": self._find, "compile": self._compile,
        }  # fmt: skip
        return handlers[kind](options, items)

    def _compile(self, *_: Any) -> list[Any]:
        """Compile what searches of one text (or picture) up to a whole batch need, before the first client waits."""
        if not len(self.index):
            return []
        warm: list[Any] = [] if self.rule is None else [np.zeros(self.rule.shape, np.uint8)]
        if "text" in self._reads:
            found = self._search((FIRST_K, None, "auto"), ["warm"])[0]["hits"]
            warm += ["warm", max([document.text for document, _ in found], key=len, default="warm")]
        for size in (1 << n for n in range(self._batch_size.bit_length())):
            for item in warm:
                self._search((FIRST_K, None, "auto"), [item] * size)
        return []

    def _facts(self) -> Facts:
        about, model, classes = self.index.description, self.model, self._classes
        return Facts(
            self._place, about.kind, len(self.index), about.width, about.dims, about.scanned, about.model, self._run,
            classes, model.dims if classes else (), tuple(model.prompts.texts), self._writable,
            stamps(index_files(self._place)), stamps(model_files(self._run)), self._reads,
            self._root if about.pictures else None,
        )  # fmt: skip

    # ---- reading ----

    def _search(self, options: tuple[int, int | None, str], items: list[Any]) -> list[dict[str, Any]]:
        """Of each query, a text, a picture that is prepared or an embedding: its hits (document, score), and whether no
        token of it is known."""
        k, dim, plan = options
        size = len(self.index)
        if not size:
            raise UserError(f"{self._place} has no documents")
        stages = dispatch.parse_plan(self.index, plan, k, dim, dashes="")
        if plan not in ("auto", "exact") and plan not in self._plans:
            if stages and stages[0][1] > MAX_SHORTLIST:
                raise UserError(f"plan={plan}: a stage of this service keeps at most {MAX_SHORTLIST:,} documents")
            if len(self._plans) >= MAX_PLANS:
                raise UserError(f"plan={plan} would be one more than {MAX_PLANS} plans, which is what a service takes")
            self._plans.add(plan)
        z = self._queries(items)
        known = np.asarray(z.any(axis=1)).tolist()
        asked = min(k, size)
        if isinstance(self.index, ExactIndex):  # elsewhere more results are other results
            most = size if stages is None else min(size, stages[-1][1])
            asked = max(asked, min(most, FIRST_K << (-(-k // FIRST_K) - 1).bit_length()))
        results = self._in_parts(z, asked, stages, dim)
        scores, rows = (part[:, : min(k, size)] for part in results)
        unique = np.unique(rows[rows >= 0])
        try:
            found = self.index.documents(unique)
        except UserError as error:  # what is on the disk is no longer what was opened; no mistake of the client
            raise Unavailable(f"{error}, or restart the service") from None
        by_row = dict(zip(unique.tolist(), found, strict=True))
        scanned = stages[0][0] if stages else min(dim or self.facts.width, self.facts.prefix)
        return [
            {
                "hits": [(by_row[row], score) for row, score in zip(r, s, strict=True) if row >= 0],
                "unknown": not is_known,
                "dims": scanned,
            }
            for r, s, is_known in zip(rows.tolist(), scores.tolist(), known, strict=True)
        ]

    def _in_parts(self, z: np.ndarray, k: int, stages: dispatch.Stages | None, dim: int | None) -> SearchResults:
        """The k best of each query, of so many at a time that what is read of documents for all of them fits."""
        per_query = stages[0][1] if stages else 2 * BIN_ROWS * (k + SPARE_BINS)
        at_once = 1 << max(0, (SEARCH_NUMBERS // (per_query * z.shape[1])).bit_length() - 1)
        parts = [
            dispatch.search_index(self.index, z[i : i + at_once], k, stages, dim) for i in range(0, len(z), at_once)
        ]
        return SearchResults(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _queries(self, items: list[Any]) -> np.ndarray:
        """The embedding of each query, of unit length."""
        z = np.zeros((len(items), self.facts.width), np.float32)
        vectors = [i for i, item in enumerate(items) if not isinstance(item, str) and item.ndim == 1]
        read = sorted({*range(len(items))} - {*vectors})
        if read:
            z[read] = self._encode([items[i] for i in read], None, "query")
        if vectors:
            z[vectors] = unit(np.stack([items[i] for i in vectors]).astype(np.float64))  # float32 squares overflow
        return z

    def _encode(self, items: list[Any], dim: int | None, prompt: str | None) -> np.ndarray:
        """The embeddings of texts and of pictures that are prepared, of unit length."""
        z = np.zeros((len(items), dim or self.facts.width), np.float32)
        are_texts = np.array([isinstance(item, str) for item in items])
        for rows in (np.flatnonzero(are_texts), np.flatnonzero(~are_texts)):
            if len(rows):
                z[rows] = self.model.encode(
                    given([items[row] for row in rows]), dim, self._batch_size, show_progress=False, prompt=prompt
                )
        return z

    def _embed(self, options: tuple[int | None, str | None], items: list[Any]) -> list[np.ndarray]:
        return list(self._encode(items, *options))

    def _classify(self, options: tuple[int | None, bool], items: list[Any]) -> list[tuple[np.ndarray, int]]:
        """Of each text, or picture: the probabilities of all classes, and the dims that were read."""
        dim, cascade = options
        if options not in self._classifiers:
            self._classifiers[options] = self.model.cascade() if cascade else self.model.classifier(dim)
        answers = self._classifiers[options].predict(given(items), batch_size=self._batch_size, show_progress=False)
        return list(zip(answers.probabilities, answers.dims.tolist(), strict=True))

    def _draw(self, _: Hashable, items: list[int]) -> list[dict[str, Any]]:
        """The map at each dim."""
        if self._map is None:
            handles, vectors = sample_of(self.index.blocks())
            sample = self.index.documents(handles)
            ids = [one.id for one in sample] if self.facts.pictures else None
            self._map = Map(vectors, [one.text for one in sample], ids)
        return [self._map.at(dim) for dim in items]

    def _find(self, _: Hashable, items: list[str]) -> list[Document | None]:
        """The document of each id; None where there is none."""
        there = self.index.find(list(dict.fromkeys(items)))
        return [there.get(id_) for id_ in items]

    # ---- writing ----

    def _upsert(self, _: Hashable, items: list[Document]) -> list[dict[str, int]]:
        """Of each document, whether it was added or replaced now; 0 for one that was there with the same text."""
        stored = self.index.find([one.id for one in items])
        try:
            commands.add_new(self.index, self.model, items, "documents", True, self._batch_size)
        finally:
            self._changed()
        return [
            {"added": int(one.id not in stored or stored[one.id].text != one.text), "documents": self.facts.documents}
            for one in items
        ]

    def _delete(self, _: Hashable, items: list[str]) -> list[dict[str, int]]:
        """Of each id, whether there was a document."""
        there = self.index.find(items)
        try:
            self.index.delete(items)
        finally:
            self._changed()
        return [{"deleted": int(id_ in there), "documents": self.facts.documents} for id_ in items]

    def _changed(self) -> None:
        self._map = None
        run_files = self.facts.run_files
        self.facts = self._facts()._replace(run_files=run_files)

"""Data larger than memory: the batches that training in memory would see, bit for bit, read from disk.

Every text is tokenised once, in one pass, into an ArrayRecord file:

    examples.array_record   inputs without padding, token after token, e.g. (id int32, weight float32), several texts a
                            record: a reader holds and copies an index of all records, so that they must not be many
    lengths.npy             int32 [n] tokens of each text
    manifest.json           what a token consists of, how many texts a record has, and the fingerprint of all

Labels, lengths and the order of an epoch are held in memory, 4 bytes each an example; the rest is read when a step
needs it, through grain, by threads ahead of training. A process reads the rows of its own devices only; of pairs, whose
texts are packed across a batch, the whole batch. The files lie in CACHE/streamed under a hash of the texts and of what
tokenised them, so that later runs and resumed ones find them.
"""

import hashlib
import itertools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import __version__ as tokenizers_version

from mrl_jax import console, encoders
from mrl_jax.config import Config
from mrl_jax.data import Dataset, PairDataset, StreamedTexts, disk_cache
from mrl_jax.errors import UserError
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training.batches import Examples, Reading

CHUNK = 4096  # texts that are tokenised together, a multiple of the most texts a record
THREADS, AHEAD = 2, 4  # that make batches, and how many these are ahead of training
RECORDS = "examples.array_record"
RECORD = 8192  # bytes of a record, about: more to read for each text, or more of them to index


def fit(config: Config, dataset: Dataset | PairDataset) -> Preprocessor:
    """As `encoders.fit`; one that was learnt from streamed texts is kept on disk, and not learnt again."""
    texts = dataset.train.raw

    def learn() -> Preprocessor:
        return encoders.fit(config.encoder, dataset.name, dataset.kind, texts)

    encoders.check(config.encoder, dataset.kind, dataset.name)
    settings = encoders.learnt_values(config.encoder)
    if not isinstance(texts, StreamedTexts) or settings.get("weights") is not None:
        return learn()
    key = json.dumps([config.encoder.name, settings, tokenizers_version])
    place = disk_cache.folder(config.data.cache_dir, "tokenizer", texts.key, key)
    disk_cache.build_once(place, lambda folder: learn().save(folder))
    return encoders.load(config.encoder, place, dataset.kind)


def examples(
    texts: StreamedTexts,
    labels: np.ndarray,
    reader: Preprocessor,
    cache_dir: str | None,
    name: str,
    columns: np.ndarray | None = None,
) -> "StreamedExamples":
    """The texts as `StreamedExamples`, tokenised now unless an earlier run did.

    With `columns` the texts are the table of pairs, whose `labels` (scores) and columns its fingerprint begins with.
    """
    with tempfile.TemporaryDirectory() as folder:
        reader.save(Path(folder))
        files = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())]
    reads = hashlib.sha256(json.dumps([files, getattr(reader, "max_words", None)]).encode()).hexdigest()
    begun = digest_of(labels, {} if columns is None else {"columns": columns})
    place = disk_cache.folder(cache_dir, "examples", texts.key, begun.hexdigest(), reads, tokenizers_version)
    disk_cache.build_once(place, partial(_write, texts=texts, begun=begun, reader=reader, name=name))
    return StreamedExamples(place, labels if columns is None else np.zeros(len(texts), np.int32))


def digest_of(labels: np.ndarray, arrays: Mapping[str, np.ndarray]) -> "hashlib._Hash":
    """SHA-256 of the arrays that a split consists of: what its fingerprint is, or begins with."""
    digest = hashlib.sha256(np.ascontiguousarray(labels))
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest


def _write(folder: Path, texts: StreamedTexts, begun: "hashlib._Hash", reader: Preprocessor, name: str) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    lengths, cut, start, texts_a_record = np.empty(len(texts), np.int32), 0, 0, 0
    token = np.dtype([])
    changed = UserError(
        f"the {name} texts changed while they were read: they are no longer {len(texts):,}; start again"
    )
    writer = ArrayRecordWriter(str(folder / RECORDS), "group_size:1,uncompressed")
    with console.progress(len(texts), f"prepare {name}", "text", leave=False) as bar:
        iterator = iter(texts)
        while chunk := list(itertools.islice(iterator, CHUNK)):
            if start + len(chunk) > len(texts):
                raise changed
            part = Examples(reader(chunk), np.zeros(len(chunk), np.int32))
            cut += getattr(reader, "cut", 0)
            assert part.lengths is not None
            token = np.dtype([(key, array.dtype) for key, array in sorted(part.inputs.items())])
            filled = np.arange(max(part.lengths.max(), 1)) < part.lengths[:, None]
            flat = np.empty(np.count_nonzero(filled), token)
            for key, array in part.inputs.items():
                flat[key] = array[:, : filled.shape[1]][filled]
            texts_a_record = texts_a_record or _texts_a_record(flat.nbytes / len(chunk))
            ends = np.cumsum(part.lengths) * token.itemsize
            stops = [*ends[texts_a_record - 1 : -1 : texts_a_record].tolist(), flat.nbytes]
            content = flat.tobytes()
            for begin, end in itertools.pairwise([0, *stops]):
                writer.write(content[begin:end])
            lengths[start : start + len(chunk)] = part.lengths
            start += len(chunk)
            bar.update(len(chunk))
    writer.close()
    if start < len(texts):
        raise changed
    np.save(folder / "lengths.npy", lengths)
    manifest = {
        "token": [[key, dtype.str] for key, dtype in _columns(token)],
        "texts_a_record": texts_a_record,
        "bytes": (folder / RECORDS).stat().st_size,
        "lengths": disk_cache.checksum(lengths),
        "cut": cut,
        "fingerprint": _fingerprint(folder / RECORDS, token, texts_a_record, lengths, begun),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _texts_a_record(size: float) -> int:
    """How many texts of `size` bytes go into a record: a power of two, so that each chunk begins a new one."""
    return min(1 << max(0, min(7, int(RECORD / max(size, 1)).bit_length() - 1)), CHUNK)


def _fingerprint(path: Path, token: np.dtype, texts_a_record: int, lengths: np.ndarray, begun: "hashlib._Hash") -> str:
    """SHA-256, `begun` with the labels, of all inputs, padded as they would be in memory: as `digest_of` has it."""
    from array_record.python.array_record_module import ArrayRecordReader

    longest = max(1, int(lengths.max(initial=0)))
    digest = begun.copy()
    for key, dtype in _columns(token):
        digest.update(f"{key} {(len(lengths), longest)} {dtype}".encode())
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:1M,max_parallelism:1")
        records = CHUNK // texts_a_record
        for chunk, start in enumerate(range(0, len(lengths), CHUNK)):
            stop = min((chunk + 1) * records, reader.num_records())
            content = np.frombuffer(b"".join(reader.read(chunk * records, stop)), token)
            digest.update(_padded(content[key], lengths[start : start + CHUNK], longest))
        reader.close()
    return digest.hexdigest()


def _columns(token: np.dtype) -> list[tuple[str, np.dtype]]:
    return [(key, token[key]) for key in token.names or ()]


def _padded(tokens: np.ndarray, lengths: np.ndarray, longest: int) -> np.ndarray:
    """`tokens` [Σ lengths] of texts one after another as [n, longest], filled up with zeros."""
    padded = np.zeros((len(lengths), longest), tokens.dtype)
    padded[np.arange(longest) < lengths[:, None]] = tokens
    return padded


class StreamedExamples(Examples):
    """As `Examples`, its inputs read from the folder that `examples` prepared. Raises `UserError` for a damaged one."""

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self.path = folder / RECORDS
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self.token = np.dtype([(key, dtype) for key, dtype in manifest["token"]])
            self.texts_a_record = int(manifest["texts_a_record"])
            self.fingerprint, self.cut = str(manifest["fingerprint"]), int(manifest["cut"])
            size = self.path.stat().st_size
            if size != manifest["bytes"]:
                raise ValueError(f"{RECORDS} has {size:,} bytes instead of {manifest['bytes']:,}")
            # Not grain's data source: it starts a thread a call, and each is left with memory for a copy of the index.
            self.reader = ArrayRecordReader(str(self.path), "readahead_buffer_size:0,max_parallelism:0")
            lengths = disk_cache.load(folder / "lengths.npy", manifest["lengths"])
            if len(lengths) != len(labels) or self.reader.num_records() != -(-len(labels) // self.texts_a_record):
                raise ValueError(f"{RECORDS} and lengths.npy are not of {len(labels):,} texts")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
            raise disk_cache.damaged_error(folder, error) from error
        self.labels: np.ndarray = labels
        self.lengths: np.ndarray = lengths
        self.longest = max(1, int(lengths.max(initial=0)))
        self.inputs = {key: Column(self, key) for key in self.token.names or ()}

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """As of `Examples`."""
        length = min(length or self.padded(rows) or 1, self.longest)
        tokens, lengths = self._tokens(rows), self.lengths[rows]
        width = max(length, int(lengths.max(initial=0)))
        batch = {key: _padded(tokens[key], lengths, width)[:, :length] for key in self.inputs}
        return batch | {"label": self.labels[rows]}

    def _tokens(self, rows: np.ndarray) -> np.ndarray:
        """The tokens of the texts at `rows`, one after another."""
        record, place = np.divmod(rows, self.texts_a_record)
        wanted, which = np.unique(record, return_inverse=True)
        held = wanted[:, None] * self.texts_a_record + np.arange(self.texts_a_record)  # texts of the records [r, texts]
        lengths = np.where(held < len(self), self.lengths[np.minimum(held, len(self) - 1)], 0)
        try:
            content = self.reader.read(wanted.tolist())
        except RuntimeError as error:
            raise disk_cache.damaged_error(self.path.parent, error) from error
        if [len(one) for one in content] != (lengths.sum(1) * self.token.itemsize).tolist():
            raise disk_cache.damaged_error(self.path.parent, f"{RECORDS} does not go with lengths.npy")
        start = (np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape)[which, place]
        length = self.lengths[rows]
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        tokens: np.ndarray = np.frombuffer(b"".join(content), self.token)[np.repeat(start, length) + within]
        return tokens

    def reading(self, rows: Iterator[Any], make: Callable[[Any], Any], start: int, stop: int) -> Reading:
        """As of `Examples`, through grain: its threads make the batches, its iterator keeps the position."""
        import grain

        wanted = _InOrder(rows, start)
        steps = grain.MapDataset.range(stop).map(lambda step: make(wanted[step]))
        batches = iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)))
        batches.set_state({"next_index": start})
        return _GrainReading(batches, start)


class Column:
    """One input of `StreamedExamples`, an array [n, longest] that is read when it is indexed by rows."""

    def __init__(self, examples: StreamedExamples, key: str) -> None:
        self.examples, self.key = examples, key
        self.shape, self.dtype = (len(examples.labels), examples.longest), examples.token[key]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        return self.examples.take(rows, self.examples.longest)[self.key]


class _InOrder:
    """What an iterator gives for the steps from `start` on, asked for by threads in nearly that order, each once."""

    def __init__(self, items: Iterator[Any], start: int) -> None:
        self.items, self.next, self.lock = items, start, threading.Lock()
        self.waiting: dict[int, Any] = {}

    def __getitem__(self, step: int) -> Any:
        with self.lock:
            while self.next <= step:
                self.waiting[self.next] = next(self.items)
                self.next += 1
            return self.waiting.pop(step)


class _GrainReading(Reading):
    """Batches from grain's iterator, which is closed with the loop that reads them."""

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.batches
        finally:
            self.batches.close()  # type: ignore[attr-defined]

    @property
    def state(self) -> dict[str, int]:
        found: dict[str, int] = self.batches.get_state()  # type: ignore[attr-defined]
        return found

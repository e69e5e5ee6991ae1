"""Data larger than memory, read from disk: bit for bit the same batches as with data in memory.

Every text is tokenised once, in one pass, into an ArrayRecord file:

    examples.array_record   inputs without padding, token after token, e.g. (id int32, weight float32), with several
                            texts per record: a reader holds and copies an index of all records, so they must be few
    lengths.npy             int32 [n], number of tokens of each text
    manifest.json           the fields of a token, the number of texts per record, and the fingerprint of the split

Labels, lengths and the order of an epoch are held in memory, 4 bytes per example each. The rest is read for each step,
by threads of grain that run ahead of training. A process reads only the rows of its own devices, or the whole batch for
pairs, whose texts are packed across the batch. The files are stored in CACHE/streamed under a hash of the texts and the
tokenizer, so that later and resumed runs find them.
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

from mrl_jax import encoders
from mrl_jax.config import Config
from mrl_jax.data import Dataset, MixedDataset, PairDataset, StreamedTexts, disk_cache
from mrl_jax.system import console
from mrl_jax.system.errors import UserError
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training.batches import BatchReader, Examples

CHUNK_TEXTS = 4096  # tokenised together; a multiple of the maximum number of texts per record
READ_THREADS = 2  # that build batches
PREFETCHED_BATCHES = 4  # how far they run ahead of training
RECORDS_FILE = "examples.array_record"
LEARNT_VERSION = 2  # of what is learnt from the same texts by the same settings; 1: unspaced scripts were not split
RECORD_BYTES = 8192  # approximate: larger records cost reading per text, smaller ones a larger index


def fit(config: Config, dataset: Dataset | PairDataset | MixedDataset) -> Preprocessor:
    """As `encoders.fit`, but a preprocessor learnt from streamed texts is cached on disk and not learnt again."""
    texts = dataset.raw if isinstance(dataset, MixedDataset) else dataset.train.raw

    def learn() -> Preprocessor:
        return encoders.fit(config.encoder, dataset.name, dataset.kind, texts)

    encoders.check(config.encoder, dataset.kind, dataset.name)
    settings = encoders.learnt_values(config.encoder)
    if not isinstance(texts, StreamedTexts) or settings.get("weights") or settings.get("tokenizer"):
        return learn()
    key = json.dumps([config.encoder.name, settings, tokenizers_version, LEARNT_VERSION])
    cached = disk_cache.folder(config.data.cache_dir, "tokenizer", texts.key, key)
    disk_cache.build_once(cached, lambda folder: learn().save(folder))
    return encoders.load(config.encoder, cached, dataset.kind)


def examples(
    texts: StreamedTexts,
    labels: np.ndarray,
    reader: Preprocessor,
    cache_dir: str | None,
    name: str,
    columns: np.ndarray | None = None,
) -> "StreamedExamples":
    """Open the texts as `StreamedExamples`; they are tokenised now unless an earlier run has done so.

    Args:
        texts: n of them.
        labels: [n]; for pairs, their scores.
        reader: tokenizer.
        cache_dir: the cache folder, None for the default one.
        name: of the split, for the progress bar and messages.
        columns: for pairs, the rows of the table `texts` in each pair; the fingerprint covers scores and columns too.
    """
    with tempfile.TemporaryDirectory() as folder:
        reader.save(Path(folder))
        files = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())]
    reader_hash = hashlib.sha256(json.dumps([files, getattr(reader, "max_words", None)]).encode()).hexdigest()
    start = digest_of(labels, {} if columns is None else {"columns": columns})
    cached = disk_cache.folder(cache_dir, "examples", texts.key, start.hexdigest(), reader_hash, tokenizers_version)
    disk_cache.build_once(cached, partial(_write, texts=texts, digest=start, reader=reader, name=name))
    return StreamedExamples(cached, labels if columns is None else np.zeros(len(texts), np.int32))


def digest_of(labels: np.ndarray, arrays: Mapping[str, np.ndarray]) -> "hashlib._Hash":
    """SHA-256 of the arrays of a split: its fingerprint, or the first part of one."""
    digest = hashlib.sha256(np.ascontiguousarray(labels))
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest


def _write(folder: Path, texts: StreamedTexts, digest: "hashlib._Hash", reader: Preprocessor, name: str) -> None:
    """Tokenise the texts into `folder`. `digest` holds what the fingerprint covers besides the inputs."""
    from array_record.python.array_record_module import ArrayRecordWriter

    lengths, cut, start, texts_per_record = np.empty(len(texts), np.int32), 0, 0, 0
    token = np.dtype([])
    changed = UserError(
        f"the {name} texts changed while they were read: they are no longer {len(texts):,}; start again"
    )
    writer = ArrayRecordWriter(str(folder / RECORDS_FILE), "group_size:1,uncompressed")
    with console.progress(len(texts), f"prepare {name}", "text", leave=False) as bar:
        iterator = iter(texts)
        while chunk := list(itertools.islice(iterator, CHUNK_TEXTS)):
            if start + len(chunk) > len(texts):
                raise changed
            part = Examples(reader(chunk), np.zeros(len(chunk), np.int32))
            cut += getattr(reader, "cut", 0)
            assert part.lengths is not None
            token = np.dtype([(key, array.dtype) for key, array in sorted(part.inputs.items())])
            is_token = np.arange(max(part.lengths.max(), 1)) < part.lengths[:, None]
            flat = np.empty(np.count_nonzero(is_token), token)
            for key, array in part.inputs.items():
                flat[key] = array[:, : is_token.shape[1]][is_token]
            texts_per_record = texts_per_record or _texts_per_record(flat.nbytes / len(chunk))
            ends = np.cumsum(part.lengths) * token.itemsize
            stops = [*ends[texts_per_record - 1 : -1 : texts_per_record].tolist(), flat.nbytes]
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
        "texts_a_record": texts_per_record,
        "bytes": (folder / RECORDS_FILE).stat().st_size,
        "lengths": disk_cache.checksum(lengths),
        "cut": cut,
        "fingerprint": _fingerprint(folder / RECORDS_FILE, token, texts_per_record, lengths, digest),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _texts_per_record(size: float) -> int:
    """The number of texts of `size` bytes per record: a power of two, so that each chunk begins a new record."""
    return min(1 << max(0, min(7, int(RECORD_BYTES / max(size, 1)).bit_length() - 1)), CHUNK_TEXTS)


def _fingerprint(
    path: Path, token: np.dtype, texts_per_record: int, lengths: np.ndarray, begun: "hashlib._Hash"
) -> str:
    """Continue the hash `begun` with all inputs, padded as they would be in memory, as in `digest_of`."""
    from array_record.python.array_record_module import ArrayRecordReader

    longest = max(1, int(lengths.max(initial=0)))
    digest = begun.copy()
    for key, dtype in _columns(token):
        digest.update(f"{key} {(len(lengths), longest)} {dtype}".encode())
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:1M,max_parallelism:1")
        records = CHUNK_TEXTS // texts_per_record
        for chunk, start in enumerate(range(0, len(lengths), CHUNK_TEXTS)):
            stop = min((chunk + 1) * records, reader.num_records())
            content = np.frombuffer(b"".join(reader.read(chunk * records, stop)), token)
            digest.update(_pad(content[key], lengths[start : start + CHUNK_TEXTS], longest))
        reader.close()
    return digest.hexdigest()


def _columns(token: np.dtype) -> list[tuple[str, np.dtype]]:
    return [(key, token[key]) for key in token.names or ()]


def _pad(tokens: np.ndarray, lengths: np.ndarray, longest: int) -> np.ndarray:
    """Split `tokens` [Σ lengths] into the texts [n, longest], padded with zeros."""
    padded = np.zeros((len(lengths), longest), tokens.dtype)
    padded[np.arange(longest) < lengths[:, None]] = tokens
    return padded


class StreamedExamples(Examples):
    """As `Examples`, with inputs read from a folder that `examples` prepared. Raises `UserError` if it is damaged."""

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self.path = folder / RECORDS_FILE
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self.token = np.dtype([(key, dtype) for key, dtype in manifest["token"]])
            self.texts_per_record = int(manifest["texts_a_record"])
            self.fingerprint, self.cut = str(manifest["fingerprint"]), int(manifest["cut"])
            size = self.path.stat().st_size
            if size != manifest["bytes"]:
                raise ValueError(f"{RECORDS_FILE} has {size:,} bytes instead of {manifest['bytes']:,}")
            # Not grain's data source, which starts a thread per call, each of which retains a copy of the index.
            self.reader = ArrayRecordReader(str(self.path), "readahead_buffer_size:0,max_parallelism:0")
            lengths = disk_cache.load(folder / "lengths.npy", manifest["lengths"])
            if len(lengths) != len(labels) or self.reader.num_records() != -(-len(labels) // self.texts_per_record):
                raise ValueError(f"{RECORDS_FILE} and lengths.npy are not of {len(labels):,} texts")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
            raise disk_cache.damaged_error(folder, error) from error
        self.labels: np.ndarray = labels
        self.lengths: np.ndarray = lengths
        self.longest = max(1, int(lengths.max(initial=0)))
        self.inputs = {key: Column(self, key) for key in self.token.names or ()}

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """As `Examples.take`."""
        length = min(length or self.padded_length(rows) or 1, self.longest)
        tokens, lengths = self._tokens(rows), self.lengths[rows]
        width = max(length, int(lengths.max(initial=0)))
        batch = {key: _pad(tokens[key], lengths, width)[:, :length] for key in self.inputs}
        return batch | {"label": self.labels[rows]}

    def _tokens(self, rows: np.ndarray) -> np.ndarray:
        """The tokens of the texts at `rows`, concatenated."""
        record, position = np.divmod(rows, self.texts_per_record)
        records, which = np.unique(record, return_inverse=True)
        texts = records[:, None] * self.texts_per_record + np.arange(
            self.texts_per_record
        )  # [records, texts per record]
        lengths = np.where(texts < len(self), self.lengths[np.minimum(texts, len(self) - 1)], 0)
        try:
            content = self.reader.read(records.tolist())
        except RuntimeError as error:
            raise disk_cache.damaged_error(self.path.parent, error) from error
        if [len(record_bytes) for record_bytes in content] != (lengths.sum(1) * self.token.itemsize).tolist():
            raise disk_cache.damaged_error(self.path.parent, f"{RECORDS_FILE} does not go with lengths.npy")
        start = (np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape)[which, position]
        length = self.lengths[rows]
        offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        tokens: np.ndarray = np.frombuffer(b"".join(content), self.token)[np.repeat(start, length) + offset]
        return tokens

    def read_ahead(self, rows: Iterator[Any], make: Callable[[Any], Any], start: int, stop: int) -> BatchReader:
        """As `Examples.read_ahead`, with grain: its threads build the batches, its iterator has the position."""
        import grain

        ordered = _InOrder(rows, start)
        steps = grain.MapDataset.range(stop).map(lambda step: make(ordered[step]))
        batches = iter(
            steps.to_iter_dataset(grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES))
        )
        batches.set_state({"next_index": start})
        return _GrainReader(batches, start)


class Column:
    """One input of `StreamedExamples`: acts as an array [n, longest] that is read from disk when indexed by rows."""

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
    """Index an iterator by step, from `start` on. Threads ask for each step once, in nearly ascending order."""

    def __init__(self, items: Iterator[Any], start: int) -> None:
        self.items, self.next, self.lock = items, start, threading.Lock()
        self.waiting: dict[int, Any] = {}

    def __getitem__(self, step: int) -> Any:
        with self.lock:
            while self.next <= step:
                self.waiting[self.next] = next(self.items)
                self.next += 1
            return self.waiting.pop(step)


class _GrainReader(BatchReader):
    """Batches from grain's iterator, which is closed when the loop over them ends."""

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.batches
        finally:
            self.batches.close()  # type: ignore[attr-defined]

    @property
    def state(self) -> dict[str, int]:
        state: dict[str, int] = self.batches.get_state()  # type: ignore[attr-defined]
        return state

"""Data larger than memory: the batches that training in memory would see, bit for bit, read from disk.

Every text is tokenised once, in one pass, into an ArrayRecord file, a record each:

    examples.array_record   the inputs of a text without padding, token after token, e.g. (id int32, weight float32)
    lengths.npy             int32 [n] tokens of each text
    manifest.json           what a record consists of, how many there are, and the fingerprint of all

Labels, lengths and the order of an epoch are held in memory, 4 bytes each an example; the rest is read when a step
needs it, through grain, by threads ahead of training. A process reads the rows of its own devices only. The files lie
in CACHE/streamed under a hash of the texts and of what tokenised them, so that later runs and resumed ones find them.
"""

import hashlib
import itertools
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from mrl_jax import arms, inputs, runs
from mrl_jax.batches import Examples, Reading
from mrl_jax.config import Config
from mrl_jax.data import Dataset, PairDataset, StreamedTexts, streamed
from mrl_jax.errors import UserError

CHUNK = 16_384  # texts that are tokenised together
EMBEDDINGS = 2 << 30  # bytes of embeddings that the evaluation of streamed data may hold at once
THREADS, AHEAD = 2, 4  # that make batches, and how many these are ahead of training
LEARNT_FROM = ("min_documents", "max_words", "vocabulary", "max_length")  # keys of an encoder that shape its reader
RECORDS = "examples.array_record"


def check(config: Config, dataset: Dataset | PairDataset) -> None:
    """Raise `UserError` where streamed data would be evaluated on more embeddings than `EMBEDDINGS` bytes hold."""
    if not isinstance(dataset, Dataset) or not isinstance(dataset.train.inputs, StreamedTexts):
        return
    settings, compressed = config.evaluation, arms.posthoc(config.arms)
    needed = 4 * config.width * (len(dataset.validation) + len(dataset.test))
    if needed > EMBEDDINGS:
        raise UserError(
            f"embeddings of the {len(dataset.validation):,} validation and {len(dataset.test):,} test texts take "
            f"{needed:,} bytes, more than {EMBEDDINGS:,}; use a smaller data.validation_fraction, data.test or width"
        )
    if not (settings.neighbours or settings.refit or compressed):
        return
    needed += 4 * config.width * len(dataset.train)
    if needed > EMBEDDINGS:
        fewer = f" and arms without {', '.join(compressed)}" if compressed else ""
        raise UserError(
            f"embeddings of the {len(dataset.train):,} training texts are needed to evaluate, and with the others they "
            f"take {needed:,} bytes, more than {EMBEDDINGS:,}; set evaluation.neighbours=false evaluation.refit=null"
            f"{fewer}"
        )


def fit(config: Config, dataset: Dataset | PairDataset) -> inputs.Reader:
    """As `inputs.fit`; a reader that was learnt from streamed texts is kept, and not learnt again."""
    inputs.check(config.encoder, dataset)
    texts = dataset.train.inputs if isinstance(dataset, Dataset) else None
    if not isinstance(texts, StreamedTexts) or getattr(config.encoder, "weights", None) is not None:
        return inputs.fit(config.encoder, dataset)
    keys = {key: getattr(config.encoder, key, None) for key in LEARNT_FROM}
    said = json.dumps([config.encoder.name, keys, tokenizers.__version__])
    place = streamed.folder(config.data.cache_dir, "tokenizer", texts.key, said)
    streamed.kept(place, lambda folder: inputs.fit(config.encoder, dataset).save(folder))
    return inputs.load(config.encoder, place, dataset.kind)


def examples(
    texts: StreamedTexts, labels: np.ndarray, reader: inputs.Reader, cache_dir: str | None, name: str
) -> "StreamedExamples":
    """The texts as `StreamedExamples`, tokenised now unless an earlier run did."""
    with tempfile.TemporaryDirectory() as folder:
        reader.save(Path(folder))
        files = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())]
    reads = hashlib.sha256(json.dumps([files, getattr(reader, "max_words", None)]).encode()).hexdigest()
    place = streamed.folder(cache_dir, "examples", texts.key, streamed.checksum(labels), reads, tokenizers.__version__)
    streamed.kept(place, partial(_write, texts=texts, labels=labels, reader=reader, name=name))
    return StreamedExamples(place, labels)


def _write(folder: Path, texts: StreamedTexts, labels: np.ndarray, reader: inputs.Reader, name: str) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    lengths, cut, start = np.empty(len(texts), np.int32), 0, 0
    record = np.dtype([])
    writer = ArrayRecordWriter(str(folder / RECORDS), "group_size:1,uncompressed")
    with runs.progress(len(texts), f"prepare {name}", "text", leave=False) as bar:
        iterator = iter(texts)
        while chunk := list(itertools.islice(iterator, CHUNK)):
            part = Examples(reader(chunk), labels[start : start + len(chunk)])
            cut += getattr(reader, "cut", 0)
            assert part.lengths is not None
            record = np.dtype([(key, array.dtype) for key, array in sorted(part.inputs.items())])
            tokens = np.arange(max(part.lengths.max(), 1)) < part.lengths[:, None]
            flat = np.empty(np.count_nonzero(tokens), record)
            for key, array in part.inputs.items():
                flat[key] = array[:, : tokens.shape[1]][tokens]
            content, stops = flat.tobytes(), np.cumsum(part.lengths) * record.itemsize
            for begin, end in itertools.pairwise([0, *stops.tolist()]):
                writer.write(content[begin:end])
            lengths[start : start + len(chunk)] = part.lengths
            start += len(chunk)
            bar.update(len(chunk))
    writer.close()
    if start != len(texts):
        raise UserError(f"the {name} texts changed while they were read: {start:,} instead of {len(texts):,}")
    np.save(folder / "lengths.npy", lengths)
    manifest = {
        "record": [[key, dtype.str] for key, dtype in _columns(record)],
        "bytes": (folder / RECORDS).stat().st_size,
        "examples": len(texts),
        "lengths": streamed.checksum(lengths),
        "cut": cut,
        "fingerprint": _fingerprint(folder / RECORDS, record, lengths, labels),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _fingerprint(path: Path, record: np.dtype, lengths: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of the labels and of all inputs, padded as they would be in memory: see `train._fingerprint`."""
    from array_record.python.array_record_module import ArrayRecordReader

    longest = max(1, int(lengths.max(initial=0)))
    digest = hashlib.sha256(np.ascontiguousarray(labels))
    for key, dtype in _columns(record):
        digest.update(f"{key} {(len(lengths), longest)} {dtype}".encode())
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:1M,max_parallelism:1")
        for start in range(0, len(lengths), CHUNK):
            stop = min(start + CHUNK, len(lengths))
            content = np.frombuffer(b"".join(reader.read(start, stop)), record)
            digest.update(_padded(content[key], lengths[start:stop], longest))
        reader.close()
    return digest.hexdigest()


def _columns(record: np.dtype) -> list[tuple[str, np.dtype]]:
    return [(key, record[key]) for key in record.names or ()]


def _padded(tokens: np.ndarray, lengths: np.ndarray, longest: int) -> np.ndarray:
    """`tokens` [Σ lengths] of texts one after another as [n, longest], filled up with zeros."""
    padded = np.zeros((len(lengths), longest), tokens.dtype)
    padded[np.arange(longest) < lengths[:, None]] = tokens
    return padded


class StreamedExamples(Examples):
    """As `Examples`, its inputs read from the folder that `examples` prepared. Raises `UserError` for a damaged one."""

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        import grain

        self.path = folder / RECORDS
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self.record = np.dtype([(key, dtype) for key, dtype in manifest["record"]])
            self.fingerprint, self.cut = str(manifest["fingerprint"]), int(manifest["cut"])
            size = self.path.stat().st_size
            if size != manifest["bytes"]:
                raise ValueError(f"{RECORDS} has {size:,} bytes instead of {manifest['bytes']:,}")
            self.source = grain.sources.ArrayRecordDataSource([str(self.path)], {"max_parallelism": "0"})
            lengths = streamed.load(folder / "lengths.npy", manifest["lengths"])
            if not len(self.source) == len(lengths) == len(labels) == manifest["examples"]:
                raise ValueError(f"{RECORDS} has {len(self.source):,} records, lengths.npy {len(lengths):,}")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
            raise streamed.damaged(folder, error) from error
        self.labels: np.ndarray = labels
        self.lengths: np.ndarray = lengths
        self.longest = max(1, int(lengths.max(initial=0)))
        self.inputs = {key: Column(self, key) for key in self.record.names or ()}

    def take(self, rows: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """As of `Examples`."""
        length = min(length or self.padded(rows) or 1, self.longest)
        lengths = self.lengths[rows]
        try:
            content = b"".join(self.source.__getitems__(rows.tolist()))
        except RuntimeError as error:
            raise streamed.damaged(self.path.parent, error) from error
        if len(content) != int(lengths.sum()) * self.record.itemsize:
            raise streamed.damaged(self.path.parent, f"{RECORDS} does not go with lengths.npy")
        tokens, width = np.frombuffer(content, self.record), max(length, int(lengths.max(initial=0)))
        batch = {key: _padded(tokens[key], lengths, width)[:, :length] for key in self.inputs}
        return batch | {"label": self.labels[rows]}

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
        self.shape, self.dtype = (len(examples.labels), examples.longest), examples.record[key]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.examples.take(np.arange(len(self))[rows], self.examples.longest)[self.key]


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

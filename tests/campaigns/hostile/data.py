"""Readers of data of a user's own."""

from pathlib import Path

import numpy as np

from mrl_jax import data
from mrl_jax.search.corpus import parse_document, read_lines, read_queries
from mrl_jax.system.errors import UserError

from .samples import LABELS, WORDS, Reader, pairs, rows, write_table


def labelled(suffix: str) -> Reader:
    def make(folder: Path) -> list[str]:
        return [write_table(folder / f"{part}{suffix}", rows(8)) for part in ("train", "test")]

    def read(folder: Path) -> object:
        train, test = (str(folder / f"{part}{suffix}") for part in ("train", "test"))
        return data.load(data.DataConfig("files", train=train, test=test))

    return Reader(make, read)


def paired(suffix: str) -> Reader:
    def make(folder: Path) -> list[str]:
        scored = [{"sentence1": f"{i} a", "sentence2": f"{i} b", "score": i / 2} for i in range(6)]
        return [
            write_table(folder / f"train{suffix}", pairs(8)),
            write_table(folder / f"test{suffix}", scored),
            write_table(folder / f"validation{suffix}", pairs(4, 1)),
        ]

    def read(folder: Path) -> object:
        train, test, validation = (str(folder / f"{part}{suffix}") for part in ("train", "test", "validation"))
        return data.load(data.DataConfig("pairs", train=train, test=test, validation=validation))

    return Reader(make, read)


def streamed(kind: str, suffix: str) -> Reader:
    """Files of texts or of pairs, read into memory and streamed: the same examples, or the same sentence."""

    def make(folder: Path) -> list[str]:
        if kind == "files":
            return labelled(suffix).make(folder)
        return [write_table(folder / f"{part}{suffix}", pairs(8, seed)) for seed, part in enumerate(("train", "test"))]

    def read(folder: Path) -> object:
        train, test = (str(folder / f"{part}{suffix}") for part in ("train", "test"))

        def load(streaming: bool) -> tuple[object, UserError | None]:
            try:
                split = data.load(data.DataConfig(kind, train=train, test=test, streaming=streaming)).train
            except UserError as error:  # how deep JSON may be nested depends on the stack: its own words are left out
                return str(error).split(" (")[0], error
            if isinstance(split, data.Pairs):
                return (list(split.table), split.columns.tolist()), None
            return (list(split.inputs), split.labels.tolist()), None

        (memory, error), (disk, _) = load(False), load(True)
        assert memory == disk, f"in memory {memory}, streamed {disk}"
        if error:
            raise error
        return memory

    return Reader(make, read)


def vectors() -> Reader:
    def make(folder: Path) -> list[str]:
        rng = np.random.default_rng(0)
        features, labels = rng.normal(size=(8, 3)), np.array(LABELS * 2)
        np.savez_compressed(folder / "train.npz", features=features, labels=labels)
        np.save(folder / "test.npy", features.astype(np.float32))
        np.save(folder / "labels.npy", labels)
        np.savez(folder / "pairs.npz", anchors=features, positives=-features, scores=np.arange(8))
        np.savez(folder / "more.npz", anchors=features + 9, positives=-features, negatives=rng.normal(size=(8, 2, 3)))
        return ["train.npz", "test.npy", "labels.npy", "pairs.npz", "more.npz"]

    def read(folder: Path) -> object:
        of = {name: str(folder / name) for name in ("train.npz", "test.npy", "labels.npy", "pairs.npz", "more.npz")}
        configs = (
            data.DataConfig("features", train=of["train.npz"], test=of["test.npy"], test_labels=of["labels.npy"]),
            data.DataConfig("features", task="pairs", train=of["more.npz"], test=of["pairs.npz"]),
        )
        said = None
        for config in configs:
            try:
                data.load(config)
            except UserError as error:
                said = error
        if said:
            raise said
        return None

    return Reader(make, read)


def beir() -> Reader:
    def make(folder: Path) -> list[str]:
        (folder / "qrels").mkdir()
        documents = [{"_id": f"d{i}", "title": WORDS[i], "text": f"about {WORDS[i]}"} for i in range(8)]
        write_table(folder / "corpus.jsonl", documents)
        write_table(folder / "queries.jsonl", [{"_id": str(i), "text": f"what is {WORDS[i]}?"} for i in range(8)])
        head = "query-id\tcorpus-id\tscore\n"
        for part, asked in (("train", range(4)), ("dev", (4, 5)), ("test", (6, 7))):
            lines = "".join(f"{i}\td{i}\t1\n{i}\td0\t0\n" if i else "0\td0\t2\n" for i in asked)
            (folder / "qrels" / f"{part}.tsv").write_text(head + lines)
        return ["corpus.jsonl", "queries.jsonl", *(f"qrels/{part}.tsv" for part in ("train", "dev", "test"))]

    return Reader(make, lambda folder: data.load(data.DataConfig("beir", path=str(folder))))


def corpus() -> Reader:
    def make(folder: Path) -> list[str]:
        write_table(folder / "corpus.jsonl", [{"_id": i, "title": "a", "text": f"b {i}"} for i in range(4)])
        write_table(folder / "queries.jsonl", [{"text": f"where is {i}?"} for i in range(4)])
        return ["corpus.jsonl", "queries.jsonl"]

    def read(folder: Path) -> object:
        found = [parse_document(folder, number, row) for number, _, row in read_lines(folder / "corpus.jsonl")]
        for text in [
            *(one.id + one.text for one in found),
            *(one.text for one in read_queries(folder / "queries.jsonl")),
        ]:
            text.encode()  # as the tokenizer, SQLite and the terminal need it
        return found

    return Reader(make, read)

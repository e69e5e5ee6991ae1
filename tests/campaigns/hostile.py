"""Every reader of files with a small valid sample, and ways to damage it; the fuzzer in benchmarks/ uses them too.

A reader is given a folder and answers with something or with a `UserError`. Whatever else happens is a bug.
"""

import csv
import io
import json
import random
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from made_runs import config as made_config
from made_runs import make_run

from mrl_jax.files import write as write_file

WORDS = ["orbit", "hockey", "kernel", "garden", "comet", "goalie", "thread", "tulip"]
LABELS = ("space", "sport", "code", "plants")


class Reader(NamedTuple):
    """`make` writes a valid sample into an empty folder and names the files to damage; `read` reads the folder."""

    make: Callable[[Path], list[str]]
    read: Callable[[Path], object]


def made_plan(steps: Any) -> str:
    """A plan.json of these steps, with the sum that `search plan` writes."""
    kept = {"version": 2, "k": 10, "recall": 0.9, "steps": steps}
    return json.dumps(kept | {"crc": zlib.crc32(json.dumps(kept).encode())})


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"text": " ".join(rng.choices(WORDS, k=3)), "label": LABELS[i % 4]} for i in range(count)]


def couples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    texts = [" ".join([f"{seed}-{i}", *rng.choices(WORDS, k=3)]) for i in range(3 * count)]
    return [dict(zip(("anchor", "positive", "negative"), texts[i::count], strict=True)) for i in range(count)]


def write_table(path: Path, table: list[dict[str, Any]]) -> str:
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table))
        case ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(table), path)
        case suffix:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, table[0], delimiter="," if suffix == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(table)
    return path.name


# ---- data of a user's own --------------------------------------------------------------------------------------------


def labelled(suffix: str) -> Reader:
    from mrl_jax import data

    def make(folder: Path) -> list[str]:
        return [write_table(folder / f"{part}{suffix}", rows(8)) for part in ("train", "test")]

    def read(folder: Path) -> object:
        train, test = (str(folder / f"{part}{suffix}") for part in ("train", "test"))
        return data.load(data.DataConfig("files", train=train, test=test))

    return Reader(make, read)


def paired(suffix: str) -> Reader:
    from mrl_jax import data

    def make(folder: Path) -> list[str]:
        scored = [{"sentence1": f"{i} a", "sentence2": f"{i} b", "score": i / 2} for i in range(6)]
        return [
            write_table(folder / f"train{suffix}", couples(8)),
            write_table(folder / f"test{suffix}", scored),
            write_table(folder / f"validation{suffix}", couples(4, 1)),
        ]

    def read(folder: Path) -> object:
        train, test, validation = (str(folder / f"{part}{suffix}") for part in ("train", "test", "validation"))
        return data.load(data.DataConfig("pairs", train=train, test=test, validation=validation))

    return Reader(make, read)


def streamed(kind: str, suffix: str) -> Reader:
    """Files of texts or of pairs, read into memory and streamed: the same examples, or the same sentence."""
    from mrl_jax import data
    from mrl_jax.errors import UserError

    def make(folder: Path) -> list[str]:
        if kind == "files":
            return labelled(suffix).make(folder)
        return [
            write_table(folder / f"{part}{suffix}", couples(8, seed)) for seed, part in enumerate(("train", "test"))
        ]

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
    from mrl_jax import data
    from mrl_jax.errors import UserError

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
    from mrl_jax import data

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
    from mrl_jax.search.corpus import parse_document, read_lines, read_queries

    def make(folder: Path) -> list[str]:
        write_table(folder / "corpus.jsonl", [{"_id": i, "title": "a", "text": f"b {i}"} for i in range(4)])
        write_table(folder / "queries.jsonl", [{"text": f"where is {i}?"} for i in range(4)])
        return ["corpus.jsonl", "queries.jsonl"]

    def read(folder: Path) -> object:
        found = [parse_document(folder, number, row) for number, _, row in read_lines(folder / "corpus.jsonl")]
        for text in [*(one.id + one.text for one in found), *read_queries(folder / "queries.jsonl")]:
            text.encode()  # as the tokenizer, SQLite and the terminal need it
        return found

    return Reader(make, read)


# ---- models ----------------------------------------------------------------------------------------------------------


def weights() -> Reader:
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    from mrl_jax.encoders import huggingface

    sizes = huggingface.Architecture(vocabulary=9, layers=1, hidden=4, heads=2, intermediate=6, positions=8)

    def make(folder: Path) -> list[str]:
        rng = np.random.default_rng(0)
        state, config = {}, {theirs: getattr(sizes, ours) for ours, theirs in huggingface.CONFIG_KEYS.items()}
        for path, name, shape in huggingface.tensors(sizes):
            state[name] = huggingface.convert(path, rng.normal(size=shape).astype(np.float32))
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
        kinds = ("Transformer", "Pooling")
        (folder / "modules.json").write_text(
            json.dumps([{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)])
        )
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6, "do_lower_case": True}))
        return [
            *("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "modules.json"),
            "sentence_bert_config.json",
        ]

    def read(folder: Path) -> object:
        found = huggingface.describe(folder)
        huggingface.load(folder, found.architecture)
        tokenizer = huggingface.load_tokenizer(folder)
        ids = [id_ for one in tokenizer.encode_batch(["Orbit of a comet", "x\0y", ""]) for id_ in one.ids]
        assert max(ids, default=0) < found.architecture.vocabulary
        return ids

    return Reader(make, read)


def trained(folder: Path) -> Path:
    """A run with a model that has just been initialised, as `mrl_jax.train` leaves it; returns its directory."""
    from mrl_jax import config as configuration
    from mrl_jax import data, encoders, runs, train
    from mrl_jax.tasks import train_step
    from mrl_jax.training.loop import save_model  # noqa: F401

    given = {"train": folder / "train.jsonl", "test": folder / "test.jsonl"}
    for path in given.values():
        write_table(path, rows(16))
    config = configuration.from_command_line(
        ["data=files", *(f"data.{key}={path}" for key, path in given.items()), f"results_dir={folder}", "run=first",
         "name=made", "width=8", "nesting_dims=[4,8]", "encoder.min_documents=1"]
    )  # fmt: skip
    dataset = data.load(config.data)
    reader = encoders.fit(config.encoder, dataset.name, dataset.kind, dataset.train.inputs)
    splits = train._splits(config, dataset, reader)
    described = train.describe(config, dataset, reader, splits)
    directory = runs.claim(config)
    reader.save(directory)
    write_file(directory / "dataset.json", json.dumps(described))
    from mrl_jax.runs import checkpoint

    model = train_step(config, described).init(0).model
    checkpoint.save(directory / "checkpoints" / "mrl_e-seed0" / "model", 1, model, {})
    return directory


def run() -> Reader:
    import mrl_jax

    def make(folder: Path) -> list[str]:
        directory = trained(folder)
        names = [str(p.relative_to(folder)) for p in sorted(directory.rglob("*")) if p.is_file()]
        return [name for name in names if not name.endswith("environment.json")]

    def read(folder: Path) -> object:
        model = mrl_jax.load(folder / "made" / "first")
        arrays = model.reader(["orbit hockey", "", "x\0y"])
        assert arrays["ids"].max(initial=0) < model.program.vocabulary
        assert np.isfinite(arrays["weights"]).all()
        return arrays

    return Reader(make, read)


def words() -> Reader:
    """The tokenizer of a bag of words alone: as in `run`, but fast."""
    from mrl_jax import encoders
    from mrl_jax.encoders.bag import BagConfig

    config = BagConfig(min_documents=1)

    def make(folder: Path) -> list[str]:
        encoders.fit(config, "made", "text", [row["text"] for row in rows(8)]).save(folder)
        return ["tokenizer.json", "idf.json"]

    def read(folder: Path) -> object:
        reader = encoders.load(config, folder, "text")
        arrays = reader(["orbit hockey", "", "x\0y"])
        assert arrays["ids"].max(initial=0) < reader.vocabulary
        assert np.isfinite(arrays["weights"]).all()
        return arrays

    return Reader(make, read)


def arrays() -> Reader:
    """A checkpoint alone."""
    from mrl_jax.runs import checkpoint

    like = {"a": np.zeros((2, 3), np.float32), "b": [np.zeros(4, np.int32)]}

    def make(folder: Path) -> list[str]:
        checkpoint.save(folder / "model", 1, like, {"best": 1})
        return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]

    return Reader(make, lambda folder: checkpoint.load(folder / "model", 1, like))


def settings() -> Reader:
    """A stored configuration."""
    from mrl_jax import config as configuration

    def make(folder: Path) -> list[str]:
        (folder / "config.yaml").write_text(configuration.to_yaml(made_config(Path("results"))))
        return ["config.yaml"]

    return Reader(make, lambda folder: configuration.from_yaml(folder / "config.yaml"))


COMMANDS = (
    "data=files data.train=a.jsonl data.test=b.jsonl name=mine",
    "+experiment=reuters_r52 arms=all seeds=5 trainer.steps=20",
    "data=pairs loss.name=info_nce width=64 nesting_dims=[16,64] encoder=transformer encoder.hidden=64 encoder.heads=4",
    "data=features encoder=mlp encoder.hidden=[64,32] optimizer=sgd optimizer.learning_rate=1e-3 nesting_dims=uniform",
    "data=wordnet loss.weights=[1,2,1,1,1,1] evaluation.dims=[3,5] evaluation.refit=null run=first resume=true",
)


def overrides() -> Reader:
    from mrl_jax import config as configuration

    def make(folder: Path) -> list[str]:
        for i, command in enumerate(COMMANDS):
            (folder / f"{i}.txt").write_text(command)
        return [f"{i}.txt" for i in range(len(COMMANDS))]

    def read(folder: Path) -> object:
        changed = [text for i in range(len(COMMANDS)) if (text := command(folder / f"{i}.txt")) != COMMANDS[i]]
        return [configuration.from_command_line(text.split(" ")) for text in changed[:1]]

    def command(path: Path) -> str:
        return path.read_bytes().replace(b"\0", b"").decode(errors="surrogateescape")  # as a process gets its words

    return Reader(make, read)


# ---- what a report and a search read ---------------------------------------------------------------------------------


def report(draw: bool) -> Reader:
    """What a report is made of; drawing takes most of the time."""
    from mrl_jax.report import compare, page, plots, study, tables

    def make(folder: Path) -> list[str]:
        directory = make_run(folder, examples=8, arms=("mrl", "ff"), seeds=1, nesting_dims=(4, 16))
        return [str(path.relative_to(folder)) for path in sorted(directory.rglob("*")) if path.is_file()]

    def read(folder: Path) -> object:
        gathered = study.gather([folder])
        comparisons = compare.compare(gathered)
        parts = tables.sections(gathered, comparisons)
        figures = plots.of_study(gathered, comparisons) if draw else ()
        texts = [tables.markdown(gathered, parts, figures), tables.latex(gathered, parts), tables.tidy(comparisons)]
        return [text.encode() for text in [*texts, page.html(gathered, comparisons)]]

    return Reader(make, read)


def index(kind: str) -> Reader:
    from mrl_jax.search.commands import saved_plan, search_index
    from mrl_jax.search.index import Description, Document, create_index, open_index, rerank

    rng = np.random.default_rng(0)
    z = rng.normal(size=(12, 8)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)

    def make(folder: Path) -> list[str]:
        place = folder / "index"
        made = create_index(str(place), Description(8, (4, 8), 4, "model", "run#mrl#0", kind))
        made.add([Document(f"d{i}", WORDS[i % 8]) for i in range(12)], z)
        made.delete(["d3"])
        rerank(made, z[:1], 3, 6)
        made.close()
        (place / "plan.json").write_text(made_plan([[4, 10]]))
        return [f"index/{path.name}" for path in sorted(place.iterdir()) if path.stat().st_size]

    def read(folder: Path) -> object:
        opened = open_index(str(folder / "index"))
        try:
            hits = search_index(opened, z[:2], 3, saved_plan(opened, 3))
            assert np.isfinite(hits.scores[hits.rows >= 0]).all()
            return [opened.documents(row[row >= 0]) for row in hits.rows], len(opened), opened.find(["d1", "d3"])
        finally:
            opened.close()

    return Reader(make, read)


# ---- artefacts and pictures ------------------------------------------------------------------------------------------

MEMBERS = {"toy/a.txt": b"first\n" * 50, "toy/b.bin": bytes(range(256))}


def archives() -> Reader:
    from mrl_jax.data.readers import artefacts
    from mrl_jax.errors import UserError

    def tar(mode: str) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode) as file:  # type: ignore[call-overload]
            for name, content in MEMBERS.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
        return out.getvalue()

    def make(folder: Path) -> list[str]:
        with zipfile.ZipFile(folder / "toy.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in MEMBERS.items():
                wheel.writestr(name, content)
        (folder / "toy.tar.gz").write_bytes(tar("w:gz"))
        package = b"!<arch>\n"
        for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", tar("w:xz"))):
            head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
            package += head.encode() + content + b"\n" * (len(content) % 2)
        (folder / "toy.deb").write_bytes(package)
        return ["toy.whl", "toy.tar.gz", "toy.deb"]

    def read(folder: Path) -> object:
        said, answers = None, []
        for name, kind in (("toy.whl", "wheel"), ("toy.tar.gz", "sdist"), ("toy.deb", "deb")):
            toy = artefacts.Artefact("toy", "1", "0" * 64, tuple(MEMBERS), kind)  # type: ignore[arg-type]
            try:
                answers.append(artefacts.unpack_members(folder / name, toy, folder / "unpacked"))
            except UserError as error:
                said = error
        if said:
            raise said
        return answers

    return Reader(make, read)


def pictures() -> Reader:
    from PIL import Image

    from mrl_jax.data.sources import tfds as catalogue

    def make(folder: Path) -> list[str]:
        rng = np.random.default_rng(0)
        picture = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        names = [f"a.{suffix}" for suffix in ("png", "jpeg", "gif", "bmp", "tiff")]
        for name in names:
            picture.save(folder / name)
        picture.convert("P").save(folder / "b.png")
        return [*names, "b.png"]

    def read(folder: Path) -> object:
        from mrl_jax.errors import UserError

        geometry, said = catalogue.Geometry(4, 4, 3), None
        for path in sorted(folder.iterdir()):
            try:
                assert catalogue.decode(path.read_bytes(), geometry).shape == geometry
            except UserError as error:
                said = error if path.suffix in (".png", ".jpeg") else said
        if said:
            raise said
        return None

    return Reader(make, read)


def idx() -> Reader:
    import gzip

    from mrl_jax.data.sources import fashion_mnist

    def make(folder: Path) -> list[str]:
        (folder / "a.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, *range(6)])))
        return ["a.gz"]

    return Reader(make, lambda folder: fashion_mnist.idx(folder / "a.gz"))


READERS: dict[str, Callable[[], Reader]] = {
    **{f"files{suffix}": lambda suffix=suffix: labelled(suffix) for suffix in (".jsonl", ".csv", ".tsv", ".parquet")},
    **{f"pairs{suffix}": lambda suffix=suffix: paired(suffix) for suffix in (".jsonl", ".csv", ".parquet")},
    **{f"streamed{suffix}": lambda suffix=suffix: streamed("files", suffix) for suffix in (".jsonl", ".parquet")},
    "streamed pairs.jsonl": lambda: streamed("pairs", ".jsonl"),
    "vectors": vectors,
    "beir": beir,
    "corpus": corpus,
    "weights": weights,
    "words": words,
    "run": run,
    "checkpoint": arrays,
    "config": settings,
    "overrides": overrides,
    "report": lambda: report(draw=False),
    "plots": lambda: report(draw=True),
    "index": lambda: index("exact"),
    "faiss": lambda: index("faiss-flat"),
    "archives": archives,
    "pictures": pictures,
    "idx": idx,
}


# ---- damage ----------------------------------------------------------------------------------------------------------

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, -1e308, float("nan"), float("inf")),
    *("", "\0", "\ud800", "a" * 100_000, "$\\x$", "${oc.env:HOME}", "${now:}", "</script>", "١", "9" * 5000, "nan"),
    *([], {}, [None], ["a", "a"], {"a": {"b": 1}}, [[1], [2, 3]], DEEP),
)
PIECES = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\r\n", b"\n", b'"', b"\\", b",", b"\t", b"$", b"{"),
    *(b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 16, b"9" * 5000, b"-1", b"NaN", b"1e999", b"[", b"[" * 3000),
    *(b"${", b"\\ud800"),
    *(b"!!python/object/apply:os.system ['x']", b"&a [*a]", b"~", b"/", b"..", b"a" * 70_000),
)  # fmt: skip


def damage(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to three changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(CHANGES)(content, rng)
    return content


def flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randint(0, len(content))]


def drop(content: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(content))
    return content[:start] + content[start + rng.choice((1, 2, 4, 16, 200)) :]


def repeat(content: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(content))
    piece = content[start : start + rng.choice((1, 4, 16, 200))]
    return content[:start] + piece * rng.choice((1, 1, 2, 50)) + content[start:]


def insert(content: bytes, rng: random.Random) -> bytes:
    at, piece = rng.randint(0, len(content)), rng.choice(PIECES)
    return content[:at] + piece + content[at + rng.choice((0, 0, len(piece))) :]


def line_ends(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"")) + content.replace(
        b"\n", rng.choice((b"\r\n", b"\r", b"\n\n"))
    )


def in_json(content: bytes, rng: random.Random) -> bytes:
    """A value, key or line of JSON changed; other content comes back as it is."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines)) if lines else 0
    for start, stop in ((0, len(lines)), (at, at + 1)):
        try:
            tree = json.loads(b"".join(lines[start:stop]))
        except (ValueError, RecursionError):
            continue
        if isinstance(tree, dict | list):
            nodes = list(containers(tree))
            text = json.dumps(changed(tree, rng.choice(nodes), rng))
            if rng.random() < 0.1:  # a key twice
                text = text.replace('{"', '{"a": 1, "a": 2, "', 1)
            end = b"\n" if stop - start == 1 else b""
            return b"".join([*lines[:start], text.encode() + end, *lines[stop:]])
    return content


def containers(node: Any) -> Iterator[Any]:
    """The objects and lists of a tree."""
    if isinstance(node, dict | list):
        yield node
        for child in node.values() if isinstance(node, dict) else node:
            yield from containers(child)


def changed(tree: Any, node: Any, rng: random.Random) -> Any:
    """The tree with one entry of `node` replaced, removed, renamed or added."""
    places = list(node) if isinstance(node, dict) else list(range(len(node)))
    value = rng.choice(VALUES)
    if not places:
        return value if node is tree else tree
    place = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del node[place]
        case 1 if isinstance(node, dict):
            node[rng.choice(("", "a", "\0", "../x", "__class__", place + "x"))] = node.pop(place)
        case 1:
            node.append(value)
        case _:
            node[place] = value
    return tree


def in_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines of text dropped, doubled or swapped, or a number or word in one of them replaced."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines.insert(rng.randrange(len(lines)), lines.pop(at))
        case _:
            value = rng.choice(VALUES)
            text = value if isinstance(value, str) else json.dumps(value)
            words = lines[at].split(b" ")
            words[rng.randrange(len(words))] = text.encode(errors="surrogatepass")
            lines[at] = b" ".join(words) + b"\n"
    return b"".join(lines)


CHANGES = (flip, flip, cut, drop, repeat, insert, insert, line_ends, in_json, in_json, in_json, in_json, in_lines)

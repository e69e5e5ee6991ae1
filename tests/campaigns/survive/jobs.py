"""The commands that are disturbed, their end states, and how two end states are compared.

The end state of a command is compared with that of an undisturbed one: bytes of tables, outcomes, plots and reports,
weights of the best models, the log without its throughput, documents and vectors of an index and what it answers.
"""

import contextlib
import hashlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import Child, Ended, in_child

import mrl_jax
from mrl_jax import report, search, train
from mrl_jax.runs import checkpoint
from mrl_jax.search.commands import load_model
from mrl_jax.search.dispatch import search_index
from mrl_jax.search.index import is_in_folder, open_index

TOPICS = ("orbit", "hockey", "kernel", "garden")
LOG_EVERY = 5  # steps, and so a checkpoint: the runs make one at every line of the log
Figures = dict[str, Any]


class PrintedFigures(dict[str, Figures]):
    """Figures by what was tried, printed as they come in."""

    def __setitem__(self, name: str, figures: Figures) -> None:
        super().__setitem__(name, figures)
        shown = {key: value for key, value in figures.items() if key != "lost"}
        print(f"{name}: {json.dumps(shown)}", *figures["lost"], sep="\n  ", flush=True)


def write_texts(path: Path, count: int, seed: int) -> Path:
    """JSONL of texts whose words give their topic away; they have an id too, as a corpus."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for i in range(count):
            topic = TOPICS[i % len(TOPICS)]
            words = [f"{topic}{rng.randrange(30)}" for _ in range(rng.randint(1, 5))]
            words += [f"common{rng.randrange(40)}" for _ in range(rng.randint(3, 19))]
            rng.shuffle(words)
            file.write(json.dumps({"_id": f"{path.stem}-{i}", "text": " ".join(words), "label": topic}) + "\n")
    return path


@dataclass(frozen=True)
class Job:
    """A command, the command that a user starts after a failure, and what it leaves behind."""

    name: str
    first: Callable[[], int | None]
    again: Callable[[], int | None]
    look: Callable[[], Any]
    place: Path  # what it writes; removed before each round
    run: Path | None = None  # of a training job


def sums(folder: Path, but: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 of every file below a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part in str(path.relative_to(folder)) for part in but)
    }


def look_at_run(directory: Path) -> Any:
    """All of a run but for times: files, the log without throughput, the weights and notes of the best models."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("examples_per_second", None)
    models = {}
    for folder in sorted(directory.glob("checkpoints/*/model")):
        arm, _, seed = folder.parent.name.rpartition("-seed")
        (step,) = checkpoint.saved_steps(folder)
        meta = json.loads((folder / f"step-{step:08d}" / "manifest.json").read_text())["meta"]
        models[folder.parent.name] = [mrl_jax.load(directory, arm, int(seed)).fingerprint, step, meta]
    members = sorted(path.name for path in (directory / "checkpoints").glob("*/*"))
    files = sums(directory, ("metrics.jsonl", "environment.json", "checkpoints/", ".lock"))
    return {"log": lines, "models": models, "members": members, "files": files}


def look_at_index(place: Path, queries: Sequence[str]) -> Any:
    """Documents, vectors and answers. Of Milvus, whose files we do not write, vectors to 5 decimals and no bytes."""
    with contextlib.closing(open_index(str(place))) as index:
        z = load_model(index, None).encode(list(queries))
        hits = search_index(index, z, 5, None)
        answers = [[one.id for one in index.documents(rows)] for rows in hits.rows]
        if not is_in_folder(str(place)):
            found = index.find([f"corpus-{i}" for i in range(10**4)])
            vectors = [[round(float(x), 5) for x in index.vectors(rows[:1])[0]] for rows in hits.rows]
            return [len(index), answers, sorted(found.items()), vectors]
    with contextlib.closing(sqlite3.connect(place / "documents.sqlite")) as connection:
        documents = connection.execute("SELECT id, text, row FROM documents ORDER BY id").fetchall()
        batches = connection.execute("SELECT start, stop, crc FROM batches ORDER BY start").fetchall()
    size = sum(stop - start for start, stop, _ in batches) * z.shape[1] * 4
    vectors = hashlib.sha256((place / "vectors.f32").read_bytes()[:size]).hexdigest()
    files = sorted(path.name for path in place.iterdir())
    return json.loads(json.dumps([answers, documents, batches, vectors, files]))


class Bench:
    """A folder with small data, and the jobs that are disturbed in it."""

    def __init__(self, folder: Path, documents: int, arms: str) -> None:
        self.folder, self.arms = folder, arms
        train_file, test_file = write_texts(folder / "train.jsonl", 240, 0), write_texts(folder / "test.jsonl", 80, 1)
        self.corpus = write_texts(folder / "corpus.jsonl", documents, 2)
        self.queries = [json.loads(line)["text"] for line in test_file.read_text().splitlines()[:20]]
        self.words = [
            "data=files", f"data.train={train_file}", f"data.test={test_file}", "name=tiny", "width=16",
            "nesting_dims=[4,8,16]", "trainer.steps=30", "trainer.batch_size=32", f"trainer.log_every={LOG_EVERY}",
            "trainer.evaluations=3", "optimizer.learning_rate=0.02", "trainer.checkpoint_seconds=0",
            "evaluation.refit=null", "evaluation.interpolated=false", "evaluation.baseline=none",
        ]  # fmt: skip

    def training(self, root: Path, *words: str, name: str = "train") -> Job:
        """A run of its own, in `root`."""
        start = [*self.words, f"results_dir={root}", "run=one", *words]
        run = root / "tiny" / "one"
        return Job(
            name, lambda: train.main(start), lambda: train.main([*start, *(["resume=true"] if run.exists() else [])]),
            lambda: look_at_run(run), root, run,
        )  # fmt: skip

    def in_turn(self, root: Path) -> Job:
        return self.training(root, "arms=[mrl]", "seeds=2")

    def population(self, root: Path) -> Job:
        return self.training(root, "arms=[mrl,mrl_e]", "trainer.population=vmap", name="train, population")

    def sweep(self, root: Path) -> Job:
        words = ["--multirun", *self.words, f"results_dir={root}", "arms=[mrl]", "trainer.batch_size=16,32"]

        def start() -> int:
            return train.main([*words, "trainer.steps=10"])

        def look() -> Any:
            return {path.name: look_at_run(path) for path in sorted((root / "tiny").glob("trainer*"))}

        return Job("sweep", start, start, look, root)

    def reporting(self, root: Path, run: Path) -> Job:
        def start() -> int:
            return report.main([str(run), "--out", str(root)])

        return Job("report", start, start, lambda: sums(root), root)

    def indexing(self, root: Path, run: Path, kind: str) -> Job:
        place = root / ("index.db" if kind == "milvus-flat" else "index")

        def start() -> int:
            return search.main(["build", str(run), str(self.corpus), "--index", str(place), "--kind", kind])

        return Job(f"index, {kind}", start, start, lambda: look_at_index(place, self.queries), root)

    def finished(self) -> Path:
        """A run to report on and to search with."""
        job = self.training(self.folder / "finished", f"arms={self.arms}")
        if not job.run.exists():
            ended = Child(job.first, job.place).wait()
            assert not ended.status, ended.said
        return job.run


@dataclass(frozen=True)
class Undisturbed:
    """A job's end state, how long it took and how many times it changed a file."""

    state: Any
    seconds: float
    changes: int
    bytes: int


def undisturbed(job: Job) -> Undisturbed:
    """Run a job twice: to fill the cache of compiled programs, and to see that chance does not change its end state."""
    states = []
    for _ in range(2):
        clear(job)
        ended = Child(job.first, job.place).wait()
        assert not ended.status, ended.said
        size = sum(path.stat().st_size for path in job.place.rglob("*") if path.is_file())
        states.append(in_child(job.look, job.place))
    assert states[0] == states[1], f"{job.name} differs from itself: {different(*states)}"
    return Undisturbed(states[0], ended.seconds, ended.changes, size)


def clear(job: Job) -> None:
    """Empty what a job writes, which may be a mounted file system."""
    job.place.mkdir(parents=True, exist_ok=True)
    for path in job.place.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def different(a: Any, b: Any, at: str = "") -> str:
    """Where two end states first differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        key = next(key for key in {**a, **b} if a.get(key) != b.get(key))
        return different(a.get(key), b.get(key), f"{at}/{key}")
    return f"{at}: {str(a)[:200]} instead of {str(b)[:200]}"


def compare(job: Job, expected: Undisturbed) -> str | None:
    """What is wrong with a job's end state; None when nothing is."""
    try:
        state = in_child(job.look, job.place)
    except RuntimeError as error:
        return str(error)
    return None if state == expected.state else different(state, expected.state)


def moment(last: str) -> str:
    """The phase in which a process changed the file `last`, in words."""
    phases = (
        ("/model", "model"), ("/state", "checkpoint"), ("tokenizer.json", "tokeniser"), ("idf.json", "tokeniser"),
        ("dataset.json", "tokeniser"), ("SHA256SUMS", "tokeniser"), ("metrics.jsonl", "log"),
        ("predictions", "evaluation"), ("evaluation.csv", "evaluation"), ("plots", "plots"), ("report", "report"),
        ("tables", "report"), ("differences", "report"), ("sqlite", "documents"), ("vectors", "documents"),
        ("index", "documents"), (".lock", "lock"), ("latest", "claim"), (".partial", "claim"),
    )  # fmt: skip
    return next((phase for part, phase in phases if part in last), "claim" if last else "start")


def failed_in_words(ended: Ended) -> bool:
    """Whether a sweep said in sentences why jobs failed, and ended with status 2."""
    return ended.status == 2 and bool(ended.errors) and "Traceback" not in ended.said

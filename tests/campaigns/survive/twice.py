"""The same command twice at once: one does the work, the other says in a sentence that it cannot, or does it too."""

import argparse
import random
import time
from collections import Counter

from children import Child, kill_at
from jobs import Bench, Figures, PrintedFigures, clear, compare, failed_in_words, undisturbed


def twice(bench: Bench, options: argparse.Namespace) -> Figures:
    """Start the same command twice at once: one does the work, the other says in a sentence that it cannot, or does it
    too; the end state is that of one."""
    run = bench.finished()
    root = bench.folder / "twice"
    made = PrintedFigures()
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

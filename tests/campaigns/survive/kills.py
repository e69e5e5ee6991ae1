"""Kill −9 at random moments and before random changes of files, and start again until done."""

import argparse
import random
import time
from collections import Counter
from pathlib import Path

from children import Child, Ended, kill_at
from jobs import LOG_EVERY, Bench, Figures, Job, PrintedFigures, clear, compare, moment, undisturbed

from mrl_jax import runs
from mrl_jax.runs import checkpoint


def kills(bench: Bench, options: argparse.Namespace) -> Figures:
    """Kill −9 at random moments and before random changes of files, and start again until done."""
    run = bench.finished()
    root = bench.folder / "killed"
    jobs = [  # and its share of the kills
        (bench.in_turn(root), 0.28), (bench.population(root), 0.2), (bench.sweep(root), 0.14),
        (bench.reporting(root, run), 0.08), (bench.indexing(root, run, "exact"), 0.14),
        (bench.indexing(root, run, "faiss-flat"), 0.08), (bench.indexing(root, run, "milvus-flat"), 0.08),
    ]  # fmt: skip
    made = PrintedFigures()
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


def steps_repeated(run: Path, ended: Ended) -> list[int]:
    """How many training steps will be made again, when a member was being trained or evaluated."""
    if not ended.label:
        return []
    folder = run / "checkpoints" / ended.label
    done = {f"{row.arm}-seed{row.seed}" for row in runs.read_rows(run / "evaluation.csv")}
    if ended.label.partition("-and-")[0] in done:
        return [0]
    return [max(0, ended.step - max(checkpoint.saved_steps(folder / "state"), default=0))]  # 0: killed while it resumed

"""Clocks that are set back and forth while commands run, and one that stands still."""

import argparse

from children import Child, jumping_clock, stopped_clock
from jobs import Bench, Figures, clear, compare, sums, undisturbed

from mrl_jax import train


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

"""Settings of its own for every arm: each tries the same draws, and its best one on validation is what it is trained
with.

A trial trains one arm, at one width where it has a fixed one, from a seed that no member of the comparison has, for as
many steps as the comparison. It is scored on the validation split at its best moment, as every member is: by the mean
over the granularities that it trains. All trials and all members of the comparison run through one compiled program, in
which settings are arguments (`mrl_jax.rows`). The test split is not read.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mrl_jax.arms import Arm, Member
from mrl_jax.config import Config, as_word, space
from mrl_jax.runs import Log, checkpoint
from mrl_jax.system import console, files, processes
from mrl_jax.system.errors import UserError
from mrl_jax.tasks.base import Splits
from mrl_jax.training.trainer import Trainer, group_members

SEED = 1_000_003  # of all trials, beyond those of a comparison
FOLDER = "trials"  # of a run: trials.csv, and the training log
CHOSEN = "tuned.json"

Settings = tuple[tuple[str, float], ...]


class Trial(NamedTuple):
    """A line of trials.csv, without the settings."""

    member: str
    arm: str
    width: int | None  # of a fixed-size arm
    trial: int  # 0: the configured settings
    accuracy: float  # on validation, at the best moment; NaN: it diverged
    step: int  # the best moment


def tune(config: Config, directory: Path, trainer: Trainer, splits: Splits) -> dict[str, Settings]:
    """The settings of each arm, by its label, after the trials that are not done yet; none where nothing is tuned.

    Raises:
        UserError: all settings of an arm diverge.
        Interrupted: after a signal; the trials that are done, and the state of that in progress, are saved.
    """
    if config.tune.trials == 0:
        return {}
    tried = space.draws(config)
    population = config.population
    done = _run(config, population, tried, directory, trainer, splits)
    each = len(tried)
    chosen = {arm.label: _choose(arm, done[i * each : (i + 1) * each]) for i, arm in enumerate(population)}
    examples = len(splits["validation"])
    record = {label: _describe(best, of_arm, tried, examples) for label, (best, of_arm) in chosen.items()}
    processes.on_process0(lambda: _keep(directory, record))
    for label, entry in record.items():
        console.say(f"{label}: {_sentence(entry)}")
    return {label: tried[best.trial] for label, (best, _) in chosen.items()}


def _run(
    config: Config,
    population: Sequence[Arm],
    tried: Sequence[Settings],
    directory: Path,
    trainer: Trainer,
    splits: Splits,
) -> list[Trial]:
    """The trials of all arms, arm by arm, of which those that are in trials.csv are not run again."""
    own = space.of_arms(config, population)
    members = [
        Member(arm, SEED, own[arm.label] + settings, trial)
        for arm in population
        for trial, settings in enumerate(tried)
    ]
    path = directory / FOLDER / "trials.csv"
    known = [Trial(*row) for row in processes.on_process0(lambda: read(path))]  # between processes, lists
    done = {trial.member: trial for trial in known}
    if processes.is_process0():
        path.parent.mkdir(exist_ok=True)
    log, total = Log(path.with_name("metrics.jsonl")), trainer.program.steps
    for group in group_members(members, trainer.at_once(members, splits["train"])):
        if all(member.label in done for member in group):
            continue
        name = group[0].label if len(group) == 1 else f"{group[0].label} and {len(group) - 1} more"
        states = directory / "checkpoints" / group[0].label / "state"
        at = members.index(group[-1]) + 1
        with console.progress(total, f"{at}/{len(members)} {name}", "step") as bar:
            results = trainer.fit(
                group, [SEED], splits["train"], splits["validation"], states, log, bar, may_diverge=True
            )
        for one in results:
            arm = one.member.arm
            assert one.member.trial is not None
            done[one.member.label] = Trial(
                one.member.label, arm.name, arm.width, one.member.trial, one.accuracy, one.step
            )
        _write(path, list(done.values()), members)
        checkpoint.remove_states(states)
    return [done[member.label] for member in members]


def _keep(directory: Path, record: Mapping[str, Any]) -> None:
    """Write tuned.json. Raises `UserError` where a model is there that was trained with other settings."""
    path = directory / CHOSEN
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        before = {}
    for label, entry in record.items():
        stored = before.get(label) if isinstance(before, dict) else None
        changed = isinstance(stored, dict) and stored.get("settings") != entry["settings"]
        if changed and any((directory / "checkpoints").glob(f"{label}-seed*/model")):
            raise UserError(
                f"{directory / FOLDER / 'trials.csv'} chooses other settings for {label} than {path}, with which its "
                f"models were trained; restore it, or delete {directory / 'checkpoints'} and evaluation.csv beside it"
            )
    files.write(path, json.dumps(record, indent=1) + "\n")


def _choose(arm: Arm, of_arm: Sequence[Trial]) -> tuple[Trial, Sequence[Trial]]:
    """The first of the best trials of an arm, and all of them."""
    finite = [trial for trial in of_arm if math.isfinite(trial.accuracy)]
    if not finite:
        raise UserError(
            f"all {len(of_arm)} settings of arm {arm.label} diverge; lower optimizer.learning_rate and tune.space"
        )
    return max(finite, key=lambda trial: (trial.accuracy, -trial.trial)), of_arm


def _describe(best: Trial, of_arm: Sequence[Trial], tried: Sequence[Settings], examples: int) -> dict[str, Any]:
    """What tuned.json says of an arm. Scores are shares, null where a trial diverged."""
    drawn = [trial.accuracy if math.isfinite(trial.accuracy) else 0.0 for trial in of_arm[1:]]
    error = math.sqrt(max(best.accuracy * (1 - best.accuracy), 0) / examples)
    return {
        "arm": best.arm,
        "width": best.width,
        "settings": {key: value if math.isfinite(value) else None for key, value in tried[best.trial]},
        "trial": best.trial,
        "trials": len(of_arm) - 1,
        "validation": best.accuracy,
        "configured": of_arm[0].accuracy if math.isfinite(of_arm[0].accuracy) else None,
        "diverged": sum(not math.isfinite(trial.accuracy) for trial in of_arm),
        "within_standard_error": sum(trial.accuracy >= best.accuracy - error for trial in of_arm),
        "expected_best": expected_best(drawn),
    }


def expected_best(scores: Sequence[float]) -> list[float]:
    """The expected best score of 1, 2, …, n trials, from n that were run: Σ_i v_(i) · (F_i^b − F_(i−1)^b) for a budget
    of b, with the sorted scores v_(i) and their empirical distribution F_i = i / n (Dodge et al. 2019,
    arXiv:1909.03004, eq. 3)."""
    ordered, n = np.sort(np.asarray(scores, np.float64)), len(scores)
    shares = np.arange(n + 1) / max(n, 1)
    return [float(ordered @ np.diff(shares**budget)) for budget in range(1, n + 1)]


def _sentence(entry: Mapping[str, Any]) -> str:
    """How an arm was tuned, in words."""
    settings = " ".join(f"{key}={as_word(value)}" for key, value in entry["settings"].items())
    configured = entry["configured"]
    before = "which diverge as configured" if configured is None else f"{100 * configured:.2f} % as configured"
    as_good = entry["within_standard_error"] - 1
    others = f"; within a standard error: {as_good} more" if as_good else ""
    which = "the configured settings" if entry["trial"] == 0 else f"trial {entry['trial']} of {entry['trials']}"
    return f"{which}, {settings}: {100 * entry['validation']:.2f} % on validation ({before}{others})"


def read(path: Path) -> list[Trial]:
    """The lines of trials.csv; none where there is no such file. Raises `UserError` for a damaged one."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Trial(
                    row["member"],
                    row["arm"],
                    int(row["width"]) if row["width"] else None,
                    int(row["trial"]),
                    float(row["accuracy"]),
                    int(row["step"]),
                )
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{path} cannot be read as trials; delete it to run them again") from None


def _write(path: Path, trials: Sequence[Trial], members: Sequence[Member]) -> None:
    """Write trials.csv atomically: a line for each trial, with its settings."""
    if not processes.is_process0():
        return
    settings = {member.label: dict(member.settings) for member in members}
    keys = list(settings[members[0].label])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*Trial._fields, *keys])
    for trial in trials:
        values = [repr(settings[trial.member][key]) for key in keys]
        writer.writerow(["" if value is None else value for value in trial] + values)
    files.write(path, buffer.getvalue())

"""Run one experiment: its arms and seeds trained, evaluated at every dim, written, tabulated and drawn.

    python -m mrl_jax.train +experiment=newsgroups
    python -m mrl_jax.train +experiment=newsgroups arms=[mrl,mrl_e,ff] seeds=3
    python -m mrl_jax.train data=files data.train=a.jsonl data.test=b.jsonl
    python -m mrl_jax.train +experiment=newsgroups resume=true

Exit status: 0 done; 2 a mistake in the command, the data or the files; stopped, to be continued with resume=true: 130
by Ctrl-C, 75 by SIGTERM (a preempted job) or because another process of the run is gone.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import jax
from omegaconf import DictConfig

from mrl_jax import arms, data, report, runs, tasks
from mrl_jax import config as configuration
from mrl_jax.arms import Member
from mrl_jax.config import Config, space
from mrl_jax.data import repeats
from mrl_jax.runs import MetricRow, checkpoint, sweeps
from mrl_jax.system import console, files, processes
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import cache_folder
from mrl_jax.tasks import Splits, baselines, probes, trials, tuning
from mrl_jax.tasks.description import describe, put_prompts, read_splits, refuse_other_data, to_json
from mrl_jax.training import disk_examples
from mrl_jax.training.loop import Interrupted
from mrl_jax.training.models import load_model, save_model
from mrl_jax.training.trainer import Trainer, group_members


def train(config: Config, begun: list[Path] | None = None) -> Path:
    """Run the experiment that `config` describes and return its run directory, which `begun` gets as soon as there is
    something to resume. Raises `UserError`, `Interrupted`."""
    with contextlib.ExitStack() as locks:
        processes.start(config.distributed)
        _cache_compiled_programs(config)
        config, directory, trainer, splits = _prepare(config, locks, [] if begun is None else begun)
        _train_members(config, directory, trainer, splits)
        return directory


def _cache_compiled_programs(config: Config) -> None:
    """Off the CPU, where compiling takes longer than a short run, keep compiled programs beside the data sets, unless
    JAX was told where (or, by JAX_ENABLE_COMPILATION_CACHE=false, not to)."""
    if jax.default_backend() != "cpu" and jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(config.data.cache_dir) / "compiled"))  # type: ignore[no-untyped-call]


def _prepare(config: Config, locks: contextlib.ExitStack, begun: list[Path]) -> tuple[Config, Path, Trainer, Splits]:
    """The configuration, as the run was begun or its recipe chose; the run directory, claimed or reopened; the compiled
    step; the data. All that can be wrong is found here."""
    directory, recipe = None, None
    # Process 0 decides: the others may not see the folder.
    if processes.on_process0(lambda: runs.exists(config) if config.resume == "auto" else config.resume):
        directory = Path(processes.on_process0(lambda: _lock(runs.reopen(config), locks)))
        begun.append(directory)
        stored = directory / "config.yaml"
        config = configuration.as_begun(config, processes.on_process0(lambda: configuration.missing_keys(stored)))
        config = configuration.assign(config, processes.on_process0(lambda: _stored_values(stored, config)))
    else:
        processes.on_process0(lambda: runs.refuse_existing(config))
    baselines.check_package(config)
    with console.stage(f"reading data={config.data.source}"):
        dataset = data.load(config.data)
    tasks.of(config).check(config, dataset)
    names = baselines.named(config, dataset)
    with console.stage("preparing the examples"):
        prompted = put_prompts(config, probes.add(config, dataset))
        config, recipe = tuning.choose(config, prompted)
        space.check(config)  # with what the recipe chose
        reader = disk_examples.fit(config, prompted)
        splits = read_splits(config, prompted, reader)
        description = describe(config, prompted, reader, splits)
    processes.check_same("data set", json.loads(to_json(description)))
    step = tasks.train_step(config, description, config.trainer.total_steps(len(splits["train"])))
    trainings = config.seeds + (config.tune.trials + 1 if config.tune.trials else 0)
    trainer = Trainer(step, config.trainer, trainings)
    step.check()
    if directory is None:
        directory = Path(processes.on_process0(lambda: _lock(runs.claim(config), locks)))
        begun.append(directory)
    else:
        processes.on_process0(lambda: refuse_other_data(directory, description))
    if processes.is_process0():
        reader.save(directory)
        files.write(directory / "dataset.json", to_json(description))
        if recipe:
            files.write(directory / "recipe.json", json.dumps(recipe, indent=1) + "\n")
        if not (directory / "repeats.json").exists() and (repeated := repeats.count(dataset)):
            files.write(directory / "repeats.json", json.dumps(repeated, indent=1) + "\n")
            if said := repeats.sentence(repeated, dataset):
                console.say(said)
        if parts := configuration.parts(config):
            for (name, part), steps in zip(parts.items(), splits["train"].steps_of(step.steps).tolist(), strict=True):
                part = configuration.assign(part, {"trainer.steps": steps})
                runs.sources.create(directory, name, part, to_json(description["sources"][name]))
        runs.raise_seeds(directory, config.seeds)
        runs.seal(directory)
    processes.on_process0(lambda: baselines.score(config, names, dataset, directory))
    return config, directory, trainer, splits


def _stored_values(path: Path, config: Config) -> dict[str, Any]:
    """What the configuration of a run has for the keys that `config` leaves open."""
    return configuration.values(configuration.from_yaml(path), config.open_keys)


def _lock(directory: Path, locks: contextlib.ExitStack) -> str:
    """Keep the run to this process."""
    locks.enter_context(runs.lock(directory))
    return str(directory)


def _train_members(config: Config, directory: Path, trainer: Trainer, splits: Splits) -> None:
    """Train, save and score what is not done yet, group by group."""
    task, total = tasks.of(config), trainer.program.steps
    members = _members(config, trials.tune(config, directory, trainer, splits))
    counts = ", ".join(f"{len(splits[name]):,} {name}" for name in ("train", "validation", "test"))
    shared = f" by {processes.count()} processes" if processes.count() > 1 else ""
    console.say(f"{directory}: {len(members)} to train{shared}, {total:,} steps each; {counts}")
    evaluation = directory / "evaluation.csv"
    rows = [MetricRow(*row) for row in processes.on_process0(lambda: runs.read_rows(evaluation))]
    if configuration.parts(config):
        runs.write_evaluation(directory, config, rows)  # those of the sources may lag behind, after a kill
    log = runs.Log(directory / "metrics.jsonl")
    if not _has_untuned(rows, config):
        rows = [row for row in rows if row.arm not in arms.UNTUNED]
        rows += _score_untuned(config, trainer, splits, directory)
        runs.write_evaluation(directory, config, rows)
    done = 0
    for group in group_members(members, trainer.at_once(members, splits["train"])):
        done += len(group)
        models = [directory / "checkpoints" / member.label / "model" for member in group]
        name = group[0].label if len(group) == 1 else f"{group[0].label}-and-{len(group) - 1}-more"
        states = directory / "checkpoints" / name / "state"
        finished = all(_is_done(rows, member, config) for member in group)
        if finished and processes.on_process0(lambda models=models: all(map(checkpoint.saved_steps, models))):  # type: ignore[misc]
            checkpoint.remove_states(states)  # of a process that was killed here
            continue
        with console.progress(total, f"{done}/{len(members)} {name}", "step") as bar:
            # Trained before, and stopped while it was evaluated?
            loaded = [load_model(model, member, trainer.program) for model, member in zip(models, group, strict=True)]
            results = [one for one in loaded if one is not None]
            if len(results) < len(group):
                results = trainer.fit(
                    group, range(config.seeds), splits["train"], splits["validation"], states, log, bar
                )
                for one, model in zip(results, models, strict=True):
                    save_model(model, one)
        for one in results:
            rows = [row for row in rows if not _is_of(row, one.member, config)]
            with console.stage(f"evaluating {one.member.label}"):
                rows += task.score(config, trainer, one, splits, directory)
            runs.write_evaluation(directory, config, rows)
        if not console.is_terminal():  # where no bar has stayed
            console.say(f"{done} of {len(members)}: {name} is done")
        checkpoint.remove_states(states)


def _score_untuned(config: Config, trainer: Trainer, splits: Splits, directory: Path) -> list[MetricRow]:
    """The rows of the untuned arms; pretrained weights are the same for every seed, so they are measured once."""
    same = getattr(config.encoder, "weights", None) is not None
    rows: list[MetricRow] = []
    for seed in range(1 if same else config.seeds):
        console.say(f"evaluating the encoder before training, seed {seed}")
        rows += tasks.of(config).score_untuned(config, trainer, splits, seed, directory)
    for seed in range(1, config.seeds) if same else ():
        rows += [row._replace(seed=seed) for row in rows if row.seed == 0]
        for name in arms.untuned(config.arms):
            for place in runs.folders(directory) if processes.is_process0() else ():
                outcomes = place / "predictions" / f"{name}-seed0.npz"
                files.write(outcomes.with_name(f"{name}-seed{seed}.npz"), outcomes.read_bytes())
    return rows


def _members(config: Config, tuned: Mapping[str, trials.Settings] | None = None) -> list[Member]:
    """The members of the comparison, with the settings of each arm where they are `tuned`, by its label."""
    population = config.population
    own = space.of_arms(config, population)
    chosen = {label: settings + (tuned or {}).get(label, ()) for label, settings in own.items()}
    return [Member(arm, seed, chosen[arm.label]) for seed in range(config.seeds) for arm in population]


def _is_of(row: MetricRow, member: Member, config: Config) -> bool:
    """Whether a line of evaluation.csv came from finishing `member`: its own, or of an arm that compresses it."""
    arm = member.arm
    compressed = row.arm in arms.made_of(arm, config.arms, config.width)
    return row.seed == member.seed and (compressed or (row.arm == arm.name and arm.width in (None, row.dim)))


def _is_done(rows: Sequence[MetricRow], member: Member, config: Config) -> bool:
    """Whether evaluation.csv has everything that finishing `member` would give."""
    expected = {member.arm.name, *arms.made_of(member.arm, config.arms, config.width)}
    return expected == {row.arm for row in rows if _is_of(row, member, config)}


def _has_untuned(rows: Sequence[MetricRow], config: Config) -> bool:
    """Whether evaluation.csv has the untuned arms, with every seed."""
    present = {(row.arm, row.seed) for row in rows}
    return all((name, seed) in present for name in arms.untuned(config.arms) for seed in range(config.seeds))


def _is_complete(directory: Path, config: Config) -> bool:
    """Whether the run that `config` describes has every result in `directory`."""
    stored = directory / "config.yaml"
    config = configuration.as_begun(config, configuration.missing_keys(stored))
    if configuration.differences(configuration.from_yaml(stored), config):
        return False  # resuming says what differs
    if not all((place / "plots" / "training.svg").exists() for place in runs.folders(directory)):
        return False  # the last that is drawn
    rows = runs.read_rows(directory / "evaluation.csv")
    if not baselines.are_made(config, rows):
        return False
    return _has_untuned(rows, config) and all(
        _is_done(rows, member, config) and checkpoint.saved_steps(directory / "checkpoints" / member.label / "model")
        for member in _members(config)
    )


# ---- the command line ------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    console.replace_unencodable()
    with _terminable():
        return _main(sys.argv[1:] if arguments is None else arguments)


HYDRA_FLAGS = ("--multirun", "-m", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i", "--hydra-help",
               "--version", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
               "--shell-completion", "-sc")  # fmt: skip


def _main(arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("-")]
    try:
        if {"--help", "-h"} & set(arguments):
            print(configuration.help_page())
            return 0
        for word in arguments:
            if word.startswith("-") and word.partition("=")[0] not in HYDRA_FLAGS:
                raise UserError(configuration.unknown_flag(word))
        if words == arguments:
            return _run(configuration.from_command_line(arguments))[0]
        arguments = configuration.with_encoder(arguments)
        # Of words with a comma, which lists the values of a sweep, the grammar is Hydra's.
        arguments = [word if word.startswith("-") or "," in word else configuration.quote(word) for word in arguments]
        words = [word for word in arguments if not word.startswith("-")]
        sweep = sweeps.prepare(words) if {"-m", "--multirun"} & set(arguments) else None
        return _run_hydra(arguments, sweep)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `… | head`: nobody reads what is left
        console.drop_output()
        return 141


def _run_hydra(arguments: list[str], sweep: sweeps.Sweep | None) -> int:
    """What is Hydra's own business: --cfg, --multirun, …"""
    sys.argv[1:] = [*arguments, *(sweep.overrides if sweep else ())]
    if sweep:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # or it prints a traceback of the errors below and exits
    try:
        _hydra_main()
    except BrokenPipeError:
        raise
    except OSError as error:  # Hydra's own files; those of a job are the job's failure
        print(f"error: {error.filename or 'results_dir'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Terminated) as stopped:
        print("interrupted; the same command, started again, does only what is missing", file=sys.stderr)
        return sweeps.STATUS_OF_SIGNAL[signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT]
    return sweeps.summary(sweep.directory) if sweep else 0


def _run(settings: Config) -> tuple[int, str]:
    """Train, then print and draw the results; returns the exit status and the last message."""
    started = time.monotonic()
    status, message = 2, ""
    begun: list[Path] = []

    def again() -> str:
        """What continues the work: before the run's folder is there, nothing is kept."""
        return "continue with the same command and resume=true" if begun else "start again: no run was begun yet"

    try:
        directory = train(settings, begun)
        if processes.is_process0():
            plots = []
            for place in runs.folders(directory):
                if place != directory:
                    print(f"{place.name}:")
                print(report.table(place, settings.evaluation.print))
                plots += report.draw(place)
            message = f"{time.monotonic() - started:.0f} s; plots: {', '.join(map(str, plots))}"
            message = "\n".join(filter(None, (message, report.behind(directory))))
        status = 0
    except UserError as error:
        message = f"error: {error}"
    except Interrupted as stopped:
        status, message = sweeps.STATUS_OF_SIGNAL[stopped.signum], f"{stopped}; {again()}"
    except Terminated:
        status, message = sweeps.STATUS_OF_SIGNAL[signal.SIGTERM], f"stopped by SIGTERM; {again()}"
    except KeyboardInterrupt:
        status, message = sweeps.STATUS_OF_SIGNAL[signal.SIGINT], f"interrupted; {again()}"
    except OSError as error:
        message = f"error: {error.filename or settings.results_dir}: {error.strerror or error}"
    except Exception as error:
        gone = processes.lost_peer_message(error)
        if gone is None:
            raise
        status, message = sweeps.STATUS_OF_SIGNAL[signal.SIGTERM], f"error: {gone}; {again()} in all of them"
    if message:
        print(message, file=sys.stderr)
    return status, message


class Terminated(BaseException):
    """SIGTERM where no training state is to be saved."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated`, as Ctrl-C raises `KeyboardInterrupt`."""

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@hydra.main(config_path=str(configuration.CONF), config_name="config", version_base="1.3")
def _hydra_main(composed: DictConfig) -> None:
    sweeps.job(composed, _run, _is_complete)


if __name__ == "__main__":
    try:
        status = main()
    except Exception:  # a mistake of ours: other processes must not wait for this one to leave properly
        traceback.print_exc()
        status = 1
    processes.leave(status)

"""Run one experiment: its arms and seeds trained, evaluated at every dim, written, tabulated and drawn.

    python -m mrl_jax.train +experiment=newsgroups
    python -m mrl_jax.train +experiment=newsgroups arms=[mrl,mrl_e,ff] seeds=3
    python -m mrl_jax.train data=files data.train=a.jsonl data.test=b.jsonl
    python -m mrl_jax.train +experiment=newsgroups resume=true

Exit status: 0 done; 2 a mistake in the command, the data or the files; stopped, to be continued with resume=true: 130
by Ctrl-C, 75 by SIGTERM (a preempted job) or because another process of the run is gone.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import jax
import numpy as np
from omegaconf import DictConfig

from mrl_jax import arms, console, data, encoders, files, processes, report, runs, scoring
from mrl_jax import config as configuration
from mrl_jax.arms import Member
from mrl_jax.config import Config
from mrl_jax.data import Dataset, PairDataset, StreamedTexts
from mrl_jax.encoders import huggingface
from mrl_jax.errors import UserError
from mrl_jax.evaluate import adaptive, refit
from mrl_jax.files import cache_folder, sha256_of
from mrl_jax.runs import MetricRow, checkpoint, sweeps
from mrl_jax.text.tokenizers import Preprocessor
from mrl_jax.training import disk_examples
from mrl_jax.training.batches import Examples, PairExamples, RankingExamples
from mrl_jax.training.disk_examples import StreamedExamples
from mrl_jax.training.loop import Interrupted, Trainer, grouped, load_model, save_model, total_steps
from mrl_jax.training.step import TrainStep

LEARN_FROM = {  # what a split consists of → losses that learn from it
    "classes": ("cross_entropy",),
    "pairs without scores": ("info_nce",),
    "pairs with scores": ("cosent", "cosine"),
}


def train(config: Config) -> Path:
    """Run the experiment that `config` describes and return its run directory. Raises `UserError`, `Interrupted`."""
    with contextlib.ExitStack() as held:
        return _train(config, held)


def _keep_compiled(config: Config) -> None:
    """Off the CPU, where compiling takes longer than a short run, keep compiled programs beside the data sets, unless
    JAX was told where (or, by JAX_ENABLE_COMPILATION_CACHE=false, not to)."""
    if jax.default_backend() != "cpu" and jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder(config.data.cache_dir) / "compiled"))  # type: ignore[no-untyped-call]


def _train(config: Config, held: contextlib.ExitStack) -> Path:
    processes.start(config.distributed)
    _keep_compiled(config)
    directory = None
    # The writer's word: the others may not see the folder.
    if processes.on_process0(lambda: runs.exists(config) if config.resume == "auto" else config.resume):
        directory = Path(processes.on_process0(lambda: _reopened(config, held)))
    else:
        processes.on_process0(lambda: runs.refuse_existing(config))
    dataset = data.load(config.data)
    _check_data(config, dataset)
    disk_examples.check(config, dataset)
    reader = disk_examples.fit(config, dataset)
    splits = _splits(config, dataset, reader)
    train, validation = splits["train"], splits["validation"]
    assert not isinstance(train, RankingExamples)
    assert not isinstance(validation, RankingExamples)
    described = describe(config, dataset, reader, splits)
    processes.same("data set", json.loads(_json(described)))
    program = TrainStep.of(config, described, total_steps(config.trainer, len(train)))
    trainer = Trainer(program, config.trainer)
    program.check()
    if directory is None:
        directory = Path(processes.on_process0(lambda: _claimed(config, held)))
    else:
        processes.on_process0(lambda: _compare_data(directory, described))
    if processes.is_process0():
        reader.save(directory)
        files.write(directory / "dataset.json", _json(described))
        runs.seal(directory)
    members = _members(config)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    shared = f" by {processes.count()} processes" if processes.count() > 1 else ""
    console.say(f"{directory}: {len(members)} to train{shared}, {program.steps:,} steps each; {counts}")
    evaluation = directory / "evaluation.csv"
    rows = [MetricRow(*row) for row in processes.on_process0(lambda: runs.read_rows(evaluation))]
    log = runs.Log(directory / "metrics.jsonl")
    for name in arms.untuned(config.arms):
        if not all(any(row.arm == name and row.seed == seed for row in rows) for seed in range(config.seeds)):
            rows = [row for row in rows if row.arm not in arms.UNTUNED]
            rows += _untuned(config, trainer, splits, directory)
            runs.write_rows(evaluation, rows)
    at_once = trainer.at_once(members, train)
    done = 0
    for group in grouped(members, at_once):
        done += len(group)
        models = [directory / "checkpoints" / member.label / "model" for member in group]
        name = group[0].label if len(group) == 1 else f"{group[0].label}-and-{len(group) - 1}-more"
        states = directory / "checkpoints" / name / "state"
        finished = all(_is_done(rows, member, config) for member in group)
        if finished and processes.on_process0(lambda models=models: all(map(checkpoint.saved_steps, models))):  # type: ignore[misc]
            _remove_states(states)  # of a process that was killed here
            continue
        with console.progress(program.steps, f"{done}/{len(members)} {name}", "step") as bar:
            # Trained before, and stopped while it was evaluated?
            there = [load_model(model, member, program) for model, member in zip(models, group, strict=True)]
            fitted = [one for one in there if one is not None]
            if len(fitted) < len(group):
                fitted = trainer.fit(group, range(config.seeds), train, validation, states, log, bar)
                for one, model in zip(fitted, models, strict=True):
                    save_model(model, one)
        for one in fitted:
            rows = [row for row in rows if not _is_of(row, one.member, config)]
            rows += scoring.of_member(config, trainer, one, splits, directory)
            runs.write_rows(evaluation, rows)
        if bar.disable:  # off a terminal, a line each
            console.say(f"{done} of {len(members)}: {name} is done")
        _remove_states(states)
    return directory


def _reopened(config: Config, held: contextlib.ExitStack) -> str:
    """The folder of the run to resume, kept to this process."""
    directory = runs.reopen(config)
    held.enter_context(runs.lock(directory))
    return str(directory)


def _claimed(config: Config, held: contextlib.ExitStack) -> str:
    """The folder of a new run, kept to this process."""
    directory = runs.claim(config)
    held.enter_context(runs.lock(directory))
    return str(directory)


def _compare_data(directory: Path, described: dict[str, Any]) -> None:
    """Raise `UserError` where a run that is resumed was begun with other data."""
    if (directory / "dataset.json").exists():
        if changed := _changed(runs.read_dataset(directory), described):
            what = "pretrained weights are" if changed == ["weights"] else "data is"
            raise UserError(f"resume=true: the {what} no longer that of {directory}; restore it, or start a new run")
    elif (directory / "checkpoints").exists():
        raise UserError(f"resume=true: {directory} has checkpoints but no dataset.json to compare the data with")


def _remove_states(states: Path) -> None:
    """Training states are only ever needed to finish their group."""
    if processes.is_process0():
        for _ in range(2):  # a disk that refuses once would leave them for good
            shutil.rmtree(states, ignore_errors=True)
        with contextlib.suppress(OSError):
            states.parent.rmdir()  # of a population: its members have folders of their own


def _untuned(config: Config, trainer: Trainer, splits: scoring.Splits, directory: Path) -> list[MetricRow]:
    """The rows of the untuned arms; pretrained weights are the same for every seed, so they are measured once."""
    same = getattr(config.encoder, "weights", None) is not None
    rows: list[MetricRow] = []
    for seed in range(1 if same else config.seeds):
        console.say(f"evaluating the encoder before training, seed {seed}")
        rows += scoring.of_untuned(config, trainer, splits, seed, directory)
    for seed in range(1, config.seeds) if same else ():
        rows += [row._replace(seed=seed) for row in rows if row.seed == 0]
        for name in arms.untuned(config.arms):
            outcomes = directory / "predictions" / f"{name}-seed0.npz"
            if processes.is_process0():
                files.write(outcomes.with_name(f"{name}-seed{seed}.npz"), outcomes.read_bytes())
    return rows


def _members(config: Config) -> list[Member]:
    population = arms.expand(config.arms, config.nesting_dims, config.loss.weights)
    return [Member(arm, seed) for seed in range(config.seeds) for arm in population]


def describe(
    config: Config, dataset: Dataset | PairDataset, reader: Preprocessor, splits: scoring.Splits
) -> dict[str, Any]:
    """dataset.json: what a model needs to be built again, and what shows that the data is still the same."""
    encoder, vocabulary = encoders.standalone(config.encoder, reader.vocabulary)
    train = splits["train"]
    pairs = {"columns": int(train.columns.shape[1])} if isinstance(train, PairExamples) else {}
    weights = getattr(config.encoder, "weights", None)
    file = huggingface.resolve(weights) / "model.safetensors" if weights else None
    started_from = {"weights": sha256_of(file)} if file is not None and file.is_file() else {}
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "classes": list(dataset.classes) if isinstance(dataset, Dataset) else [],
        **pairs,
        "inputs": {name: list(array[:1].shape[1:]) for name, array in _some(train.inputs).items()},
        "encoder": dataclasses.asdict(encoder),
        "vocabulary": vocabulary,
        "examples": {name: len(split) for name, split in splits.items()},
        "fingerprint": {name: _fingerprint(split) for name, split in splits.items()},
        **started_from,
    }


def _changed(then: dict[str, Any], described: dict[str, Any]) -> list[str]:
    """The keys of an earlier dataset.json that are described otherwise now."""
    now = json.loads(_json(described))
    return [key for key in then if then[key] != now.get(key)]


def _some(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array[np.arange(1)]) for name, array in arrays.items()}


def _fingerprint(split: Examples | PairExamples | RankingExamples) -> str:
    """SHA-256 over all arrays of a split; of inputs that are read lazily only the first is looked at."""
    if (table := _streamed(split)) is not None:  # of the same arrays, made when they were written
        return table.fingerprint
    first, arrays = split.arrays()
    lazy = {name: array for name, array in arrays.items() if not isinstance(array, np.ndarray)}
    return disk_examples.digest_of(first, arrays | _some(lazy)).hexdigest()


def _streamed(split: Examples | PairExamples | RankingExamples) -> StreamedExamples | None:
    """The examples of a split, or of its pairs, that are read from disk."""
    table = split.table if isinstance(split, PairExamples) else split
    return table if isinstance(table, StreamedExamples) else None


def _splits(config: Config, dataset: Dataset | PairDataset, reader: Preprocessor) -> scoring.Splits:
    """The three parts of a data set as arrays. Says how many texts were longer than the encoder reads."""
    cut = texts = 0

    def arrays(raw: Any) -> dict[str, Any]:
        nonlocal cut, texts
        read = reader(raw)
        cut, texts = cut + getattr(reader, "cut", 0), texts + len(raw)
        return read

    splits = _as_arrays(config, dataset, reader, arrays)
    for split in splits.values():
        if (table := _streamed(split)) is not None:
            cut, texts = cut + table.cut, texts + len(table)
    if cut:
        longest = getattr(encoders.standalone(config.encoder, reader.vocabulary)[0], "max_length", None)
        console.say(f"{cut:,} of {texts:,} texts are longer than encoder.max_length={longest} and are cut")
    return splits


def _as_arrays(
    config: Config, dataset: Dataset | PairDataset, reader: Preprocessor, arrays: Callable[[Any], dict[str, Any]]
) -> scoring.Splits:
    if isinstance(dataset, Dataset):

        def part(name: str, split: data.Split) -> Examples:
            if isinstance(split.inputs, StreamedTexts):
                return disk_examples.examples(split.inputs, split.labels, reader, config.data.cache_dir, name)
            return Examples(arrays(split.inputs), split.labels)

        parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
        return {name: part(name, split) for name, split in parts.items()}

    def read(texts: Any) -> Examples:
        return Examples(arrays(texts), np.zeros(len(texts), np.int32))

    scores = dataset.train.scores
    low, high = (0.0, 1.0) if scores is None else (float(scores.min()), float(scores.max()))

    def pairs(name: str, part: data.Pairs, **options: int) -> PairExamples:
        # To 0…1, as cosine regression needs them; nothing else depends on their unit.
        to_unit = None if part.scores is None else (part.scores - low) / max(high - low, 1e-12)
        if not isinstance(part.table, StreamedTexts):
            return PairExamples(read(part.table), part.columns, to_unit, **options)
        labels = np.zeros(len(part), np.float32) if to_unit is None else to_unit.astype(np.float32)
        table = disk_examples.examples(part.table, labels, reader, config.data.cache_dir, name, part.columns)
        return PairExamples(table, part.columns, to_unit, **options)

    test = dataset.test
    return {
        "train": pairs("train", dataset.train, chunks=config.trainer.accumulate, multiple=jax.device_count()),
        "validation": pairs("validation", dataset.validation, multiple=jax.device_count()),
        "test": pairs("test", test)
        if isinstance(test, data.Pairs)
        else RankingExamples(read(test.queries), read(test.documents), test.judgments),
    }


def _held(part: data.Split | data.Pairs) -> str:
    """What a split consists of, a key of `LEARN_FROM`."""
    if isinstance(part, data.Split):
        return "classes"
    return "pairs without scores" if part.scores is None else "pairs with scores"


def _check_data(config: Config, dataset: Dataset | PairDataset) -> None:
    """Raise `UserError` where a split is empty, or the data is not what the loss learns from."""
    for name in ("train", "validation", "test"):
        if not len(getattr(dataset, name)):
            hint = "; raise data.validation_fraction or add examples" if name == "validation" else ""
            raise UserError(f"data={dataset.name}: the {name} split is empty{hint}")
    loss, held = config.loss.name, _held(dataset.train)
    if (other := _held(dataset.validation)) != held:
        raise UserError(f"data={dataset.name}: train has {held}, validation {other}; both have to be of one kind")
    fitting = LEARN_FROM[held]
    if loss not in fitting:
        raise UserError(f"loss.name={loss} does not fit data={dataset.name}, {held}; use {' or '.join(fitting)}")
    if isinstance(dataset, Dataset):
        refit.check(scoring.refitted_by(config), len(dataset.classes), config.width)
    if config.evaluation.cascade and isinstance(dataset, Dataset):
        adaptive.check(len(dataset.validation), config.evaluation.epsilon, config.evaluation.delta)
        examples = len(dataset.validation) + len(dataset.test)
        adaptive.check_memory(examples, len(dataset.classes), len(config.nesting_dims))


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _is_of(row: MetricRow, member: Member, config: Config) -> bool:
    """Whether a line of evaluation.csv came from finishing `member`: its own, or of an arm that compresses it."""
    arm = member.arm
    compressed = row.arm in arms.POSTHOC and arm.width == config.width
    return row.seed == member.seed and (compressed or (row.arm == arm.name and arm.width in (None, row.dim)))


def _is_done(rows: Sequence[MetricRow], member: Member, config: Config) -> bool:
    """Whether evaluation.csv has everything that finishing `member` would give."""
    expected = {member.arm.name, *(arms.posthoc(config.arms) if member.arm.width == config.width else ())}
    return expected == {row.arm for row in rows if _is_of(row, member, config)}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    console.replace_unencodable()
    with _terminable():
        return _main(sys.argv[1:] if arguments is None else arguments)


def _main(arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("-")]
    try:
        if words == arguments:
            return _run(configuration.from_command_line(arguments))[0]
        sweep = sweeps.prepare(words) if {"-m", "--multirun"} & set(arguments) else None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # The rest is Hydra's own business: --help, --cfg, --multirun, …
    sys.argv[1:] = [*arguments, *(sweep.overrides if sweep else ())]
    if sweep:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # or it prints a traceback of the errors below and exits
    try:
        _hydra_main()
    except OSError as error:  # Hydra's own files; those of a job are the job's failure
        print(f"error: {error.filename or 'results_dir'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Terminated) as stopped:
        print("interrupted; the same command, started again, does only what is missing", file=sys.stderr)
        return sweeps.STOPPED[signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT]
    return sweeps.summary(sweep.directory) if sweep else 0


def _run(settings: Config) -> tuple[int, str]:
    """Train, then print and draw what came out; returns the exit status and what was said last."""
    started = time.monotonic()
    status, said = 2, ""
    again = "continue with the same command and resume=true"
    try:
        directory = train(settings)
        if processes.is_process0():
            print(report.table(directory))
            drawn = report.draw(directory)
            said = f"{time.monotonic() - started:.0f} s; plots: {', '.join(str(path) for path in drawn)}"
        status = 0
    except UserError as error:
        said = f"error: {error}"
    except Interrupted as stopped:
        status, said = sweeps.STOPPED[stopped.signum], f"{stopped}; {again}"
    except Terminated:
        status, said = sweeps.STOPPED[signal.SIGTERM], f"stopped by SIGTERM; {again}"
    except KeyboardInterrupt:
        status, said = sweeps.STOPPED[signal.SIGINT], f"interrupted; {again}"
    except OSError as error:
        said = f"error: {error.filename or settings.results_dir}: {error.strerror or error}"
    except Exception as error:
        gone = processes.lost(error)
        if gone is None:
            raise
        status, said = sweeps.STOPPED[signal.SIGTERM], f"error: {gone}; {again} in all of them"
    if said:
        print(said, file=sys.stderr)
    return status, said


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


def _is_complete(directory: Path, config: Config) -> bool:
    """Whether the run that `config` describes has every result in `directory`."""
    if configuration.differences(configuration.from_yaml(directory / "config.yaml"), config):
        return False  # resuming says what differs
    if not (directory / "plots" / "training.svg").exists():
        return False  # the last that is drawn
    rows = runs.read_rows(directory / "evaluation.csv")
    if any(
        (name, seed) not in {(row.arm, row.seed) for row in rows}
        for name in arms.untuned(config.arms)
        for seed in range(config.seeds)
    ):
        return False
    return all(
        _is_done(rows, member, config) and checkpoint.saved_steps(directory / "checkpoints" / member.label / "model")
        for member in _members(config)
    )


if __name__ == "__main__":
    try:
        status = main()
    except Exception:  # a mistake of ours: other processes must not wait for this one to leave properly
        traceback.print_exc()
        status = 1
    processes.leave(status)

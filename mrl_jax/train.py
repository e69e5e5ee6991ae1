"""Run one experiment: its arms and seeds trained, evaluated at every dim, written, tabulated and drawn.

    python -m mrl_jax.train +experiment=newsgroups
    python -m mrl_jax.train +experiment=newsgroups arms=[mrl,mrl_e,ff] seeds=3
    python -m mrl_jax.train data=files data.train=a.jsonl data.test=b.jsonl
    python -m mrl_jax.train +experiment=newsgroups resume=true

Exit status: 0 done, 2 a mistake in the command, the data or the files, 130 interrupted (continue with resume=true).
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig

from mrl_jax import arms, checkpoint, compress, data, encoders, evaluate, heads, inputs, report, runs, sweeps
from mrl_jax import config as configuration
from mrl_jax.arms import Member
from mrl_jax.batches import Examples
from mrl_jax.config import Config
from mrl_jax.data import Dataset
from mrl_jax.errors import UserError
from mrl_jax.evaluate import Score, adaptive, refit
from mrl_jax.evaluate.classification import Classifiers
from mrl_jax.program import Program
from mrl_jax.runs import Row
from mrl_jax.trainer import Fitted, Interrupted, Trainer, grouped, save_model, steps


def train(config: Config) -> Path:
    """Run the experiment that `config` describes and return its run directory. Raises `UserError`, `Interrupted`."""
    with contextlib.ExitStack() as held:
        return _train(config, held)


def _train(config: Config, held: contextlib.ExitStack) -> Path:
    directory = None
    if config.resume:
        directory = runs.reopen(config)
        held.enter_context(runs.lock(directory))
    else:
        runs.refuse_existing(config)
    dataset = data.load(config.data)
    _check_splits(dataset)
    if config.evaluation.cascade:
        adaptive.check(len(dataset.validation), config.evaluation.epsilon, config.evaluation.delta)
    reader = inputs.fit(config.encoder, dataset)
    splits = {name: Examples(reader(split.inputs), split.labels) for name, split in _splits(dataset)}
    described = describe(config, dataset, reader, splits)
    program = Program.of(config, described, steps(config.trainer, len(splits["train"])))
    trainer = Trainer(program, config.trainer)
    program.check()
    if directory is None:
        directory = runs.claim(config)
        held.enter_context(runs.lock(directory))
    elif (directory / "dataset.json").exists() and runs.read_dataset(directory) != json.loads(_json(described)):
        raise UserError(f"resume=true: the data is no longer that of {directory}; restore it, or start a new run")
    elif (directory / "checkpoints").exists() and not (directory / "dataset.json").exists():
        raise UserError(f"resume=true: {directory} has checkpoints but no dataset.json to compare the data with")
    reader.save(directory)
    runs.write(directory / "dataset.json", _json(described))
    members = _members(config)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    print(f"{directory}: {len(members)} to train, {program.steps:,} steps each; {counts}", file=sys.stderr)
    evaluation = directory / "evaluation.csv"
    rows = runs.read_rows(evaluation)
    log = runs.Log(directory / "metrics.jsonl")
    at_once = trainer.at_once(members, splits["train"])
    done = 0
    for group in grouped(members, at_once):
        done += len(group)
        models = [directory / "checkpoints" / member.label / "model" for member in group]
        if all(_is_done(rows, member, config) for member in group) and all(map(checkpoint.steps, models)):
            continue
        name = group[0].label if len(group) == 1 else f"{group[0].label}-and-{len(group) - 1}-more"
        states = directory / "checkpoints" / name / "state"
        with runs.progress(program.steps, f"{done}/{len(members)} {name}", "step") as bar:
            fitted = trainer.fit(group, range(config.seeds), splits["train"], splits["validation"], states, log, bar)
        for one in fitted:
            rows = [row for row in rows if not _is_of(row, one.member, config)]
            rows += _finish(config, trainer, one, splits, directory)
            runs.write_rows(evaluation, rows)
        if bar.disable:  # off a terminal, a line each
            print(f"{done} of {len(members)}: {name} is done", file=sys.stderr)
        shutil.rmtree(states, ignore_errors=True)  # only ever needed to finish this group
        with contextlib.suppress(OSError):
            states.parent.rmdir()  # of a population: its members have folders of their own
    return directory


def _members(config: Config) -> list[Member]:
    population = arms.expand(config.arms, config.nesting_dims, config.loss.weights)
    return [Member(arm, seed) for seed in range(config.seeds) for arm in population]


def describe(config: Config, dataset: Dataset, reader: inputs.Reader, splits: dict[str, Examples]) -> dict[str, Any]:
    """dataset.json: what a model needs to be built again, and what shows that the data is still the same."""
    encoder, vocabulary = encoders.standalone(config.encoder, reader.vocabulary)
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "classes": list(dataset.classes),
        "inputs": {name: list(array[:1].shape[1:]) for name, array in _some(splits["train"]).items()},
        "encoder": dataclasses.asdict(encoder),
        "vocabulary": vocabulary,
        "examples": {name: len(split) for name, split in splits.items()},
        "fingerprint": {name: _fingerprint(split) for name, split in splits.items()},
    }


def _some(examples: Examples) -> dict[str, np.ndarray]:
    return {name: np.asarray(array[np.arange(1)]) for name, array in examples.inputs.items()}


def _fingerprint(examples: Examples) -> str:
    """SHA-256 over labels and inputs; of inputs that are read lazily only the first is looked at."""
    digest = hashlib.sha256(np.ascontiguousarray(examples.labels))
    for name, array in sorted(examples.inputs.items()):
        content = array if isinstance(array, np.ndarray) else _some(examples)[name]
        digest.update(f"{name} {content.shape} {content.dtype}".encode())
        digest.update(np.ascontiguousarray(content))
    return digest.hexdigest()


def _splits(dataset: Dataset) -> tuple[tuple[str, data.Split], ...]:
    return (("train", dataset.train), ("validation", dataset.validation), ("test", dataset.test))


def _check_splits(dataset: Dataset) -> None:
    for name, split in _splits(dataset):
        if not len(split):
            hint = "; raise data.validation_fraction or add examples" if name == "validation" else ""
            raise UserError(f"data={dataset.name}: the {name} split is empty{hint}")


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _is_of(row: Row, member: Member, config: Config) -> bool:
    """Whether a line of evaluation.csv came from finishing `member`: its own, or of an arm that compresses it."""
    arm = member.arm
    compressed = row.arm in arms.POSTHOC and arm.width == config.width
    return row.seed == member.seed and (compressed or (row.arm == arm.name and arm.width in (None, row.dim)))


def _is_done(rows: Sequence[Row], member: Member, config: Config) -> bool:
    """Whether evaluation.csv has everything that finishing `member` would give."""
    expected = {member.arm.name, *(arms.posthoc(config.arms) if member.arm.width == config.width else ())}
    return expected == {row.arm for row in rows if _is_of(row, member, config)}


def _finish(
    config: Config, trainer: Trainer, fitted: Fitted, splits: dict[str, Examples], directory: Path
) -> list[Row]:
    """Keep a trained member's model and outcomes, and return its lines of evaluation.csv."""
    member, arm, dims, settings = fitted.member, fitted.member.arm, config.nesting_dims, config.evaluation
    compressions = arms.posthoc(config.arms)
    classifier = settings.refit or ("logistic" if compressions else None)
    needed = {name: split for name, split in splits.items() if name != "train" or settings.neighbours or classifier}
    z = {name: trainer.embed(fitted.model, split, settings.batch_size) for name, split in needed.items()}
    labels = {name: split.labels for name, split in splits.items()}

    def refitted(z: dict[str, np.ndarray], at: Sequence[int]) -> Classifiers:
        fit = {"logistic": refit.logistic, "ridge": refit.ridge}[classifier or "logistic"]
        fixed = [m for m in at if m in dims or m in (settings.dims or ())]  # between the nesting dims it takes long
        return fit(z["train"], labels["train"], z["validation"], labels["validation"], fixed, trainer.program.classes)

    def keep(name: str, scores: Iterable[tuple[str, Score]]) -> list[Row]:
        rows: list[Row] = []
        outcomes = {f"{split}/label": labels[split] for split in ("validation", "test")}
        for split, s in scores:
            rows.append(Row(config.name, name, member.seed, s.dim, split, s.metric, s.value))
            if s.outcomes is not None:
                outcomes[f"{split}/{s.metric}/{s.dim}"] = s.outcomes
            if s.prediction is not None:
                outcomes[f"{split}/prediction/{s.dim}"] = s.prediction
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **outcomes)
        label = member.label if name == arm.name else f"{name}-seed{member.seed}"
        runs.write(directory / "predictions" / f"{label}.npz", buffer.getvalue())
        return rows

    wanted = evaluate.dims_of(arm, dims, settings)
    head = fitted.model.params["heads"][arm.head]
    own = heads.classifiers(head, arm.head, dims, wanted if arm.head == "tied" else arm.trained(dims))
    others = {"refit_top1": refitted(z, wanted)} if classifier else {}
    scores = evaluate.score(z, labels, own, others, wanted, dims, settings)
    if settings.cascade and len(stages := arm.trained(dims)) > 1:
        tied = arm.head == "tied"
        scores = itertools.chain(scores, evaluate.adaptively(z, labels, own, tied, stages, settings, member.seed))
    rows = keep(arm.name, scores)
    at = evaluate.dims_of(None, dims, settings)
    for name in compressions if arm.width == config.width else ():
        compression = compress.fit(name, z["train"], member.seed)
        compressed = {split: compression.apply(x) for split, x in z.items()}
        others = {"own_head_top1": compress.own_head(compression, *own[config.width], at)}
        scores = evaluate.score(compressed, labels, refitted(compressed, at), others, at, dims, settings)
        # What a refitted classifier says is no probability, so it is not asked for its calibration.
        rows += keep(name, ((split, s) for split, s in scores if s.metric != "ece"))
    save_model(directory / "checkpoints" / member.label / "model", fitted)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    report.forgiving_output()
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
    try:
        _hydra_main()
    except KeyboardInterrupt:
        print("interrupted; the same command, started again, does only what is missing", file=sys.stderr)
        return sweeps.INTERRUPTED
    return sweeps.summary(sweep.directory) if sweep else 0


def _run(settings: Config) -> tuple[int, str]:
    """Train, then print and draw what came out; returns the exit status and what was said last."""
    started = time.monotonic()
    status, said = 2, ""
    try:
        directory = train(settings)
        print(report.table(directory))
        drawn = report.draw(directory)
        status, said = 0, f"{time.monotonic() - started:.0f} s; plots: {', '.join(str(path) for path in drawn)}"
    except UserError as error:
        said = f"error: {error}"
    except Interrupted as stopped:
        status, said = sweeps.INTERRUPTED, f"{stopped}; continue with the same command and resume=true"
    except KeyboardInterrupt:
        status, said = sweeps.INTERRUPTED, "interrupted; continue with the same command and resume=true"
    except OSError as error:
        said = f"error: {error.filename or settings.results_dir}: {error.strerror or error}"
    print(said, file=sys.stderr)
    return status, said


@hydra.main(config_path=str(configuration.CONF), config_name="config", version_base="1.3")
def _hydra_main(composed: DictConfig) -> None:
    sweeps.job(composed, _run, _is_complete)


def _is_complete(directory: Path, config: Config) -> bool:
    """Whether the run that `config` describes has every result in `directory`."""
    if configuration.differences(configuration.from_yaml(directory / "config.yaml"), config):
        return False  # resuming says what differs
    rows = runs.read_rows(directory / "evaluation.csv")
    return all(
        _is_done(rows, member, config) and checkpoint.steps(directory / "checkpoints" / member.label / "model")
        for member in _members(config)
    )


if __name__ == "__main__":
    sys.exit(main())

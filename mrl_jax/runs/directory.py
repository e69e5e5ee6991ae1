"""The run directory: the one place where results live, and the rules that keep them.

    results/<experiment>/<run>/
        config.yaml         the resolved configuration
        recipe.json         which recipe chose the keys that the command left open, and the scores of its trials
        tuned.json          the settings that each arm chose on validation, where `tune.trials` asks for it
        trials/             every setting that was tried: trials.csv, and the log of their training
        environment.json    versions, device, core count, git commit
        dataset.json        classes, sizes and a fingerprint of the data
        repeats.json        how many examples stand in train more than once, or in train and in another part
        tokenizer.json      how texts become numbers (text only; idf.json beside it for a bag of words)
        ngrams.json         which runs of words or characters are counted (encoder.ngrams above 1)
        scaler.json         mean and scale of features
        SHA256SUMS          hashes of the files above that a model is built from, in the format of `sha256sum`
        metrics.jsonl       the training log, one line per member and logging interval
        baselines.json      the settings that were chosen for baselines
        evaluation.csv      experiment,arm,seed,dim,split,metric,value
        predictions/        per-example outcomes that paired statistics need
        checkpoints/        training states until training ends, and the best model of each member
        sources/            of a run on several sources, the results of each, see `runs.sources`
        plots/              plots of metrics.jsonl and evaluation.csv

A folder is created under a temporary name and renamed once its first files are in it, so no run is overwritten or half
created. Files that are rewritten are replaced atomically.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrl_jax import config as configuration
from mrl_jax.runs.environment import environment
from mrl_jax.system.errors import UserError, nearest
from mrl_jax.system.files import cannot_write_error, path_of, sha256_of, write

SEALED_FILES = (
    "config.yaml",
    "dataset.json",
    "recipe.json",
    "tokenizer.json",
    "idf.json",
    "ngrams.json",
    "scaler.json",
)
REWRITTEN_FILES = SEALED_FILES[3:]  # what resume=true writes again where it is gone


def refuse_existing(config: configuration.Config) -> None:
    """Raise `UserError` if the run that `config` names exists. Called before any work, and once more by `claim`."""
    parent = _parent(config)
    if config.run is not None and _is_occupied(parent / config.run):
        raise UserError(
            f"run={config.run} exists in {parent} and is not overwritten; "
            "choose another name, or continue it with resume=true"
        )


def exists(config: configuration.Config) -> bool:
    """Whether the run that `config` names exists."""
    return (_parent(config) / (config.run or "latest") / "config.yaml").exists()


def _parent(config: configuration.Config) -> Path:
    return path_of("results_dir", config.results_dir) / config.name


def _is_occupied(directory: Path) -> bool:
    """Whether `directory` exists and is not an empty folder, so that a run would overwrite something."""
    return os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir()))


def claim(config: configuration.Config) -> Path:
    """Create and return the folder of a new run; raises `UserError` if a run of that name exists.

    The folder gets its name after its first files: a process killed before leaves nothing that looks like a run.
    """
    refuse_existing(config)
    parent = _parent(config)
    name = config.run or time.strftime("%Y-%m-%d_%H-%M-%S")
    unnamed = parent / f".{secrets.token_hex(8)}.partial"
    try:
        unnamed.mkdir(parents=True)
    except OSError as error:
        raise cannot_write_error(parent / name, error) from None
    try:
        write(unnamed / "config.yaml", configuration.to_yaml(config))
        write(unnamed / "environment.json", json.dumps(environment(), indent=1) + "\n")
    except UserError:
        shutil.rmtree(unnamed, ignore_errors=True)
        raise
    for attempt in range(1, 1000):
        directory = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            if not _is_occupied(directory):
                unnamed.rename(directory)
                _point_latest(parent, directory.name)
                return directory
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # another process was faster
                shutil.rmtree(unnamed, ignore_errors=True)
                raise cannot_write_error(directory, error) from None
        if config.run is not None:
            break
    shutil.rmtree(unnamed, ignore_errors=True)
    refuse_existing(config)
    raise UserError(f"cannot find a free name for a run in {parent}; give one with run=…")


def reopen(config: configuration.Config) -> Path:
    """The folder of the run to resume; raises `UserError` if there is none or its configuration differs."""
    parent = _parent(config)
    directory = parent / (config.run or "latest")
    if config.run is None and not directory.exists():  # killed before the link was made
        directory = parent / next(reversed(names_below(parent)), "latest")
    if not (directory / "config.yaml").is_file():
        names = names_below(parent)
        existing = f"runs there: {', '.join(names)}" if names else "there is no run there"
        raise UserError(f"resume=true: no run {directory}{nearest(config.run or '', names)}; {existing}")
    begun = configuration.from_yaml(directory / "config.yaml")
    missing = configuration.missing_keys(directory / "config.yaml")
    if changed := configuration.differences(begun, configuration.as_begun(config, missing)):
        raise UserError(
            f"resume=true: {directory} was started with another configuration: {'; '.join(changed[:5])}; "
            "resume with the same keys, or start a new run"
        )
    _warn_if_environment_changed(directory)
    return directory.resolve()


def _warn_if_environment_changed(directory: Path) -> None:
    """Print a warning if versions, devices or cores have changed: bit-exact resumption needs the same ones."""
    try:
        then = dict(json.loads((directory / "environment.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        then = {}
    now = environment()
    changed = [key for key in ("python", "versions", "devices", "cores") if then.get(key) != now[key]]
    if changed:
        print(
            f"{directory} was started with other {', '.join(changed)} (environment.json): "
            "the last decimals may differ from an undisturbed run",
            file=sys.stderr,
        )


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the exclusive lock of a run; raises `UserError` if another process holds it. It is released at exit."""
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory} is being trained by another process; wait for it, or stop it") from None
        yield


def names_below(parent: Path) -> list[str]:
    """The names of the runs in a folder, sorted: default names begin with the date, so oldest first."""
    folders = (path.parent for path in parent.glob("*/config.yaml") if not path.parent.is_symlink())
    return sorted(path.name for path in folders if not path.name.startswith("."))


def find(path: str | Path) -> Path:
    """The run directory at `path`, or else the latest run below it; raises `UserError` if there is none."""
    path = Path(path)
    for candidate in (path, path / "latest"):
        if (candidate / "config.yaml").is_file():
            return candidate.resolve()
    names = names_below(path)
    if names:
        return (path / names[-1]).resolve()
    raise UserError(f"{path} is not a run: there is no config.yaml in it or in its folder 'latest'")


def _point_latest(parent: Path, name: str) -> None:
    link = parent / f".latest.{os.getpid()}"
    try:
        link.symlink_to(name)
        os.replace(link, parent / "latest")
    except OSError:  # no symbolic links here, or a folder is called latest: the link is only a convenience
        link.unlink(missing_ok=True)


def seal(directory: Path) -> None:
    """Write SHA256SUMS of the files that a model is built from; `read_dataset` verifies them."""
    sealed = [path for name in SEALED_FILES if (path := directory / name).is_file()]
    write(directory / "SHA256SUMS", "".join(f"{sha256_of(path)}  {path.name}\n" for path in sealed))


def raise_seeds(directory: Path, seeds: int) -> None:
    """Store that a run goes on to more seeds than it was begun with, and nothing else: keys that config.yaml lacks stay
    out of it.

    The caller seals the run again. Until then there is no SHA256SUMS: after a kill in between, the old one would say
    that config.yaml is damaged.
    """
    path = directory / "config.yaml"
    text = path.read_text(encoding="utf-8")
    if (raised := re.sub(r"(?m)^seeds:.*$", f"seeds: {seeds}", text)) != text:
        (directory / "SHA256SUMS").unlink(missing_ok=True)
        write(path, raised)


def _check_seal(directory: Path) -> None:
    """Raise `UserError` if a file does not match SHA256SUMS. Runs of older versions have no such file."""
    path = directory / "SHA256SUMS"
    if not path.exists():
        return
    try:
        lines = [line.partition("  ") for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        lines = []
    hashes = {name: expected for expected, _, name in lines}
    if not {"config.yaml", "dataset.json"} <= hashes.keys() <= set(SEALED_FILES):
        raise UserError(f"{path} is damaged; restore it, or delete it to go without")
    for name, expected in hashes.items():
        file = directory / name
        if file.is_file() and sha256_of(file) != expected:
            remedy = "; delete it and use resume=true to write it again" if name in REWRITTEN_FILES else ""
            raise UserError(f"{file} is not what SHA256SUMS says: one of the two is damaged; restore it{remedy}")


def read_dataset(directory: Path) -> dict[str, Any]:
    """The content of a run's dataset.json; raises `UserError` if it is missing, or a sealed file is damaged."""
    path = directory / "dataset.json"
    _check_seal(directory)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    content = _description(path, content)
    if not isinstance(of := content.get("sources", {}), dict):
        raise UserError(f"{path} is damaged: sources={repr(of)[:40]} is invalid; expected descriptions by name")
    return content | ({"sources": {name: _description(path, each) for name, each in of.items()}} if of else {})


def _description(path: Path, raw: Any) -> dict[str, Any]:
    """The description of a data set, with the keys of today; raises `UserError` where it cannot be one."""
    missing = {"kind", "classes", "inputs", "encoder", "vocabulary"} - set(raw if isinstance(raw, dict) else ())
    if missing:
        raise UserError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    content: dict[str, Any] = configuration.stored_description(raw)
    shapes = content["inputs"].values() if isinstance(content["inputs"], dict) else [None]
    for key, valid, expected in (
        ("kind", content["kind"] in ("text", "image", "features", "image-text"), "text, image, features or image-text"),
        ("classes", _is_list_of(str, content["classes"]), "a list of names"),
        ("inputs", all(_is_list_of(int, shape) for shape in shapes), "shapes by name"),
        ("encoder", isinstance(content["encoder"], dict), "the settings of an encoder"),
        (
            "vocabulary",
            content["vocabulary"] is None or _is_list_of(int, [content["vocabulary"]]),
            "an integer or null",
        ),
        ("prompts", _is_texts_by_name(content["prompts"]), "texts by name"),
        ("columns", _is_list_of(int, [content.get("columns", 1)]), "an integer"),
    ):
        if not valid:
            value = repr(content.get(key))[:40]
            raise UserError(f"{path} is damaged: {key}={value} is invalid; expected {expected}")
    return content


def _is_texts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and _is_list_of(str, [*value, *value.values()])


def _is_list_of(kind: type, values: Any) -> bool:
    """Whether `values` is a list of strings that UTF-8 can encode, or of integers in 0…2**31 − 1."""
    if not isinstance(values, list):
        return False
    if kind is int:
        return all(type(value) is int and 0 <= value < 2**31 for value in values)
    return all(isinstance(value, str) and value == value.encode(errors="ignore").decode() for value in values)

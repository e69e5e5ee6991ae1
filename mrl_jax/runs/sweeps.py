"""Sweeps: Hydra's --multirun with runs named after the swept values, restartable, and robust to failing jobs.

    python -m mrl_jax.train --multirun +experiment=reuters_r8 optimizer.learning_rate=3e-3,1e-2

Each job is a run of its own, `results/<experiment>/optimizer.learning_rate=0.003`, so the same command, started again,
skips finished runs and resumes the others. If nothing is swept, the run is named after the sweep's folder. A job that
fails leaves a note in `results/.sweeps/<date>/failed/`, on whatever machine it ran, and does not stop the other jobs.
"""

import hashlib
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from mrl_jax import config as configuration
from mrl_jax.config import Config
from mrl_jax.system import files
from mrl_jax.system.errors import UserError, one_of

LAUNCHERS = {
    "basic": "hydra",
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
}
MAX_TIMEOUTS = 100  # requeues of a SLURM job that ran out of time; the launcher's default is none
# Exit status by signal; 75 is EX_TEMPFAIL of sysexits.h: try again.
STATUS_OF_SIGNAL: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 75}


class Sweep(NamedTuple):
    """A sweep about to start: overrides for Hydra besides those of the command line, and where jobs leave notes."""

    overrides: list[str]
    directory: Path


def prepare(words: Sequence[str]) -> Sweep:
    """Check every value of a sweep before its first job. Raises `UserError` for an invalid one."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(words))
        values = [
            [f"{word.partition('=')[0]}={value}" for value in o.sweep_string_iterator()]
            if o.is_sweep_override()
            else [word]
            for o, word in zip(parsed, words, strict=True)
        ]
    except (HydraException, ValueError) as error:
        raise UserError(configuration.explain(error, list(words))) from None
    launcher = _launcher(words)
    job = [options for options in values if not options[0].lstrip("+").startswith("hydra")]
    first = [options[0] for options in job]
    checked = configuration.from_command_line(first)
    for i, options in enumerate(job):
        for other in options[1:]:
            configuration.from_command_line([*first[:i], other, *first[i + 1 :]])
    given = [str(o.value()) for o in parsed if o.key_or_group == "hydra.sweep.dir"]
    # The random suffix separates sweeps started within one second, or after the clock was set back.
    dated = Path(checked.results_dir).expanduser() / ".sweeps" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{token_hex(3)}"
    directory = Path(given[-1]) if given else dated
    swept = {o.key_or_group for o in parsed if o.is_sweep_override()}
    same = sorted({o.key_or_group for o in parsed} - swept)
    overrides = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(_quote, same))}]"]
    if not given:
        overrides.append(f"hydra.sweep.dir={_quote(str(directory))}")
    if launcher == "submitit_slurm" and "hydra.launcher.max_num_timeout" not in {o.key_or_group for o in parsed}:
        overrides.append(f"hydra.launcher.max_num_timeout={MAX_TIMEOUTS}")
    if launcher != "basic":
        os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    return Sweep(overrides, directory)


def _launcher(words: Sequence[str]) -> str:
    """The name of the chosen launcher; raises `UserError` if it is unknown or not installed."""
    chosen = [word.partition("=")[2] for word in words if word.partition("=")[0] == "hydra/launcher"]
    name = one_of("hydra/launcher", chosen[-1] if chosen else "basic", LAUNCHERS)
    try:
        spec = find_spec(LAUNCHERS[name])
    except ModuleNotFoundError:  # the parent package is missing as well
        spec = None
    if spec is None:
        raise UserError(f"hydra/launcher={name} is not installed: pip install 'mrl_jax[sweeps]'")
    return name


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def run_name(overrides: str) -> str | None:
    """The folder name of a job, from its swept `key=value` words joined by commas; None if nothing is swept."""
    name = re.sub(r"[\[\]{}'\"+]", "", overrides)  # values of one key differ in other characters than these
    safe = re.sub(r"[^A-Za-z0-9._=,@-]", "-", name)
    if len(safe) > 120 or safe != name:  # the hash keeps names apart that now look alike
        safe = f"{safe[:100]}-{hashlib.sha256(overrides.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return safe or None


def job(composed: Any, run: Callable[[Config], tuple[int, str]], is_complete: Callable[[Path, Config], bool]) -> None:
    """Run one job of a sweep: start, resume or skip its run. An interrupt ends the sweep, a failure only this job."""
    hydra = HydraConfig.get()
    failed = Path(hydra.sweep.dir) / "failed" / f"{hydra.job.num}.json"
    # If nothing is swept, the run is named after the sweep, so that a requeued job finds it.
    name = run_name(hydra.job.override_dirname) or Path(hydra.sweep.dir).resolve().name
    try:
        settings = configuration.parse(OmegaConf.to_container(composed, resolve=True))
        if settings.run is None:
            settings = replace(settings, run=name)
        directory = Path(settings.results_dir).expanduser() / settings.name / (settings.run or "")
        if settings.run is not None and (directory / "config.yaml").exists():
            settings = replace(settings, resume=True)
            if is_complete(directory, settings):
                print(f"{directory} is done", file=sys.stderr)
                return
        status, message = run(settings)
    except UserError as error:
        status, message = 2, f"error: {error}"
        print(message, file=sys.stderr)
    except Exception as error:  # a bug in one job must not lose the others
        status, message = 1, f"{type(error).__name__}: {error}"
        traceback.print_exc()
    if status in STATUS_OF_SIGNAL.values():
        raise SystemExit(status)
    if status:
        note = {"job": hydra.job.num, "overrides": name, "error": message}
        try:
            files.write(failed, json.dumps(note))
        except UserError as error:  # without the note the sweep would end with status 0
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def summary(directory: Path) -> int:
    """Print which jobs failed and return the exit status of the sweep."""
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((directory / "failed").glob("*.json"))]
    for note in notes:
        print(f"failed: job {note['job']} ({note['overrides']}): {note['error']}", file=sys.stderr)
    if notes:
        print(
            f"error: {len(notes)} of the jobs failed; the same command, started again, does only what is missing",
            file=sys.stderr,
        )
    return 2 if notes else 0

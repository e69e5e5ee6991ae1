"""The folder of each source of a run on several: `sources/<name>` of the run, which reports read like a run.

results/<experiment>/<run>/sources/<name>/
    config.yaml         the configuration of the source: its data, loss and steps; `data.sources` has the others
    dataset.json        classes, sizes and a fingerprint of its data
    evaluation.csv      its rows of the run's own evaluation.csv, whose `experiment` is <experiment>.<source>
    predictions/        per-example outcomes
    checkpoints/        the calibration of its classifiers; the models are those of the run
"""

from collections.abc import Iterable
from pathlib import Path

from mrl_jax import config as configuration
from mrl_jax.config import Config
from mrl_jax.runs.directory import raise_seeds, seal
from mrl_jax.runs.results import MetricRow, write_rows
from mrl_jax.system.files import write

FOLDER = "sources"


def folder(run: Path, name: str) -> Path:
    """The folder of a source."""
    return run / FOLDER / name


def folders(run: Path) -> list[Path]:
    """Where the results of a run are: in the folders of its sources, or in its own."""
    found = [path.parent for path in sorted((run / FOLDER).glob("*/config.yaml"))]
    return found or [run]


def run_of(directory: Path) -> tuple[Path, str | None]:
    """The run that a folder belongs to, and the name of the source where the folder is that of one."""
    run = directory.parent.parent
    if directory.parent.name == FOLDER and (run / "config.yaml").is_file():
        return run, directory.name
    return directory, None


def create(run: Path, name: str, part: Config, dataset: str) -> None:
    """Write what describes a source: its configuration, as the run was begun, and the content of its dataset.json."""
    place = folder(run, name)
    if not (place / "config.yaml").exists():
        write(place / "config.yaml", configuration.to_yaml(part))
    raise_seeds(place, part.seeds)
    write(place / "environment.json", (run / "environment.json").read_text(encoding="utf-8"))
    write(place / "dataset.json", dataset)
    seal(place)


def write_evaluation(run: Path, config: Config, rows: Iterable[MetricRow]) -> None:
    """Write evaluation.csv of a run, and of each of its sources."""
    rows = list(rows)
    for name, part in configuration.parts(config).items():
        write_rows(folder(run, name) / "evaluation.csv", [row for row in rows if row.experiment == part.name])
    write_rows(run / "evaluation.csv", rows)

"""The results of a run: metrics.jsonl, appended line by line, and evaluation.csv, a tidy table."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mrl_jax.system import processes
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import cannot_write_error, write


class MetricRow(NamedTuple):
    """A row of evaluation.csv."""

    experiment: str
    arm: str
    seed: int
    dim: int
    split: str
    metric: str
    value: float


class Log:
    """metrics.jsonl: appended line by line, and cut back to a checkpoint when a run resumes from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines and flush them to the operating system, so that they survive a kill of this process."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if not processes.is_process0():
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise cannot_write_error(self.path, error) from error

    def rewind(self, labels: Iterable[str], step: int) -> None:
        """Delete the lines of the members `labels` after `step` (and a last line that was cut off by a kill)."""
        if not processes.is_process0():
            return
        members = set(labels)
        lines = [line for line in self.read() if line["member"] not in members or line["step"] <= step]
        write(self.path, "".join(json.dumps(line) + "\n" for line in lines))

    def read(self) -> Iterator[dict[str, Any]]:
        """The intact lines; none if the file does not exist."""
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and {"member", "step", "split"} <= line.keys():
                yield line


def write_rows(path: Path, rows: Iterable[MetricRow]) -> None:
    """Write evaluation.csv atomically, with 6 decimals: finer than any meaningful difference."""
    if not processes.is_process0():
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(MetricRow._fields)
    writer.writerows((*row[:-1], f"{row.value:.6f}") for row in rows)
    write(path, buffer.getvalue())


def write_baseline(directory: Path, name: str, settings: dict[str, Any]) -> None:
    """Add the settings that were chosen for a baseline to baselines.json."""
    path = directory / "baselines.json"
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        known = {}
    if processes.is_process0():
        write(path, json.dumps(known | {name: settings}, indent=1) + "\n")


def read_rows(path: Path) -> list[MetricRow]:
    """Read an evaluation.csv; an absent file has no rows. Raises `UserError` for a damaged one."""
    if not path.exists():
        return []
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for r in csv.DictReader(file):
                key = (r["experiment"], r["arm"], int(r["seed"]), int(r["dim"]), r["split"], r["metric"])
                rows.append(MetricRow(*key, float(r["value"])))
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged after line {len(rows) + 1} ({error}); delete it and use resume=true to write it again"
        ) from None
    return rows

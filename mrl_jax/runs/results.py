"""What a run writes down: metrics.jsonl line by line, evaluation.csv as tidy rows."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mrl_jax import processes
from mrl_jax.errors import UserError
from mrl_jax.files import cannot_write_error, write


class MetricRow(NamedTuple):
    """A line of evaluation.csv."""

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
        """Add lines and hand them to the operating system, so that a killed process keeps them."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if not processes.is_process0():
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise cannot_write_error(self.path, error) from error

    def rewind(self, labels: Iterable[str], step: int) -> None:
        """Drop what the members `labels` logged after `step` (and a last line that was cut off by a kill)."""
        if not processes.is_process0():
            return
        dropped = set(labels)
        kept = [line for line in self.read() if line["member"] not in dropped or line["step"] <= step]
        write(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def read(self) -> Iterator[dict[str, Any]]:
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
    """evaluation.csv, in one atomic replacement. Values are written with 6 decimals, below any real difference."""
    if not processes.is_process0():
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(MetricRow._fields)
    writer.writerows((*row[:-1], f"{row.value:.6f}") for row in rows)
    write(path, buffer.getvalue())


def read_rows(path: Path) -> list[MetricRow]:
    """The lines of an evaluation.csv; an absent file has none."""
    if not path.exists():
        return []
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for r in csv.DictReader(file):
                place = (r["experiment"], r["arm"], int(r["seed"]), int(r["dim"]), r["split"], r["metric"])
                rows.append(MetricRow(*place, float(r["value"])))
    except (KeyError, TypeError, ValueError, OSError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged after line {len(rows) + 1} ({error}); delete it and use resume=true to write it again"
        ) from None
    return rows

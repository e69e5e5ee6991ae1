"""Coverage-guided fuzzing of everything that reads files: `pip install 'mrl_jax[fuzz]'`, then

    python tests/campaigns/fuzz.py --reader files.jsonl --seconds 60

The readers, and valid samples of what they read, are those of `hostile`. One file of a sample at a time is
damaged, by libFuzzer and by the structured changes of the tests. A right reader answers, or raises `UserError` with a
sentence; everything else is a finding: it is printed with its place, and the bytes are kept in --keep. A call that
takes longer than --slow seconds, or that needs more than 4 GB, is one too. The last line is JSON; exit status 1 with
findings.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("RUST_BACKTRACE", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))  # where made_runs.py is

import atheris

with atheris.instrument_imports(include=["mrl_jax", "yaml", "zipfile", "tarfile"]):
    import hostile

    from mrl_jax.system.errors import UserError

MOST_BYTES = 1 << 20


class Campaign:
    """A sample on disk, what is called, and what was seen so far."""

    def __init__(self, name: str, folder: Path, seconds: float, slow: float, keep: Path) -> None:
        self.name, self.folder, self.slow, self.keep = name, folder, slow, keep
        self.reader = hostile.READERS[name]()
        self.files = self.reader.make(folder)
        self.valid = [(folder / file).read_bytes() for file in self.files]
        self.reader.read(folder)
        self.known = {path for path in folder.rglob("*") if path.is_file()}
        self.started = time.monotonic()
        self.until = self.started + seconds
        self.counts = {"executions": 0, "answers": 0, "sentences": 0}
        self.slowest = 0.0
        self.findings: dict[tuple[str, ...], str] = {}

    def seeds(self) -> list[bytes]:
        """Inputs of the fuzzer: the number of a file, and its content."""
        return [bytes([i]) + content for i, content in enumerate(self.valid)]

    def one(self, data: bytes) -> None:
        """Read the sample with one file replaced; stops the process when time is up."""
        if time.monotonic() > self.until:
            self.finish()
        if not data:
            return
        number = data[0] % len(self.files)
        path = self.folder / self.files[number]
        path.write_bytes(data[1:])
        started = time.monotonic()
        self.counts["executions"] += 1
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                self.reader.read(self.folder)
            self.counts["answers"] += 1
        except UserError as error:
            self.counts["sentences"] += 1
            if not str(error).isprintable():
                self.found(("message",), data, str(error))
        except BaseException as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "mrl_jax/" in frame.filename]
            place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"
            self.found((type(error).__name__, place), data, str(error)[:200])
        took = time.monotonic() - started
        self.slowest = max(self.slowest, took)
        if took > self.slow:
            self.found(("slow", self.files[number]), data, f"{took:.1f} s")
        path.write_bytes(self.valid[number])
        for other in set(self.folder.rglob("*")) - self.known:  # journals, unpacked members
            if other.is_file():
                other.unlink()

    def found(self, kind: tuple[str, ...], data: bytes, said: str) -> None:
        if kind not in self.findings:
            self.findings[kind] = said
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / f"{self.name}-{len(self.findings)}").write_bytes(data)
            print(f"{self.name}: {' '.join(kind)}: {said!a}", flush=True)

    def finish(self) -> None:
        told = {"reader": self.name, **self.counts, "seconds": round(time.monotonic() - self.started)}
        print(json.dumps({**told, "slowest": round(self.slowest, 2), "findings": len(self.findings)}), flush=True)
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        os._exit(1 if self.findings else 0)  # libFuzzer has no other way out

    def mutated(self, data: bytes, size: int, seed: int) -> bytes:
        """Half of the changes are libFuzzer's own."""
        rng = random.Random(seed)
        if not data or rng.random() < 0.5:
            return bytes(atheris.Mutate(data, size))
        number = rng.randrange(len(self.files)) if rng.random() < 0.1 else data[0] % len(self.files)
        content = data[1:] if number == data[0] % len(self.files) else self.valid[number]
        return (bytes([number]) + hostile.damage(content, rng))[:size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=sorted(hostile.READERS), required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--slow", type=float, default=10, help="seconds that no call may take")
    parser.add_argument("--keep", type=Path, default=Path("fuzzed"), help="where inputs that were findings go")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        sample, seeds = Path(scratch) / "sample", Path(scratch) / "seeds"
        sample.mkdir()
        seeds.mkdir()
        campaign = Campaign(given.reader, sample, given.seconds, given.slow, given.keep)
        for i, seed in enumerate(campaign.seeds()):
            (seeds / str(i)).write_bytes(seed)
        options = [
            f"-max_len={MOST_BYTES}",
            f"-seed={given.seed + 1}",
            "-rss_limit_mb=4096",
            "-timeout=60",
            "-verbosity=0",
        ]
        options += [f"-artifact_prefix={given.keep}/"]
        given.keep.mkdir(parents=True, exist_ok=True)
        mutate: Callable[..., Any] = campaign.mutated
        atheris.Setup(["fuzz", *options, str(seeds)], campaign.one, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Measurements in fresh processes: a worker is the same script again with `--worker`, and prints one line of JSON."""

import json
import os
import platform
import subprocess
import sys
from typing import Any


def pin(threads: int) -> None:
    """Keep this process to so many cores; before JAX or torch counts them."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def measured(*words: object) -> Any:
    """What `--worker words…` of the running script prints, in a process of its own; ends this one if that fails."""
    command = [sys.executable, "-W", "ignore", sys.argv[0], "--worker", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def machine(**more: Any) -> dict[str, Any]:
    """Where figures come from, for a benchmark's JSON."""
    here = {"python": platform.python_version(), "platform": platform.platform()}
    return {**here, "cores": len(os.sched_getaffinity(0)), **more}

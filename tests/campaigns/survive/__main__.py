"""What is lost when processes are killed, disks fill up, files rot, two users start at once and clocks jump: nothing.

    python tests/campaigns/survive kills --number 200   # kill −9 at random moments, started again until done
    python tests/campaigns/survive disk                 # full, read-only and failing disks at random writes
    python tests/campaigns/survive damage               # flipped bits and missing ends of every file that is read back
    python tests/campaigns/survive twice                # the same command twice at once
    python tests/campaigns/survive clock                # clocks that are set back while a run goes on

Each prints what was tried and what was lost, ends with status 1 if anything was, and writes it with --json. What counts
as lost is any difference between a command's end state and that of an undisturbed one (`jobs.py`).
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "mrl_jax_survive_jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
os.environ["TQDM_DISABLE"] = "1"
warnings.filterwarnings("ignore", message=r"os.fork\(\) was called")

import faiss  # noqa: E402, F401
from clocks import clock  # noqa: E402
from damage import damage  # noqa: E402
from disks import disk  # noqa: E402
from jobs import Bench, Figures  # noqa: E402
from kills import kills  # noqa: E402
from twice import twice  # noqa: E402

CAMPAIGNS = {"kills": kills, "disk": disk, "damage": damage, "twice": twice, "clock": clock}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaigns", nargs="+", choices=CAMPAIGNS)
    parser.add_argument("--number", type=int, default=200, help="kills, or failures of the disk, in all")
    parser.add_argument("--each", type=int, default=8, help="trials of each file, pair or clock")
    parser.add_argument("--most", type=int, default=6, help="kills before a command is left to finish")
    parser.add_argument("--only", nargs="+", help="of kills, disk and twice: these jobs")
    parser.add_argument("--arms", default="[mrl,ff]", help="of the run that is reported on and searched with")
    parser.add_argument("--documents", type=int, default=5000, help="of the index")
    parser.add_argument("--prepared", action="store_true", help="of damage: Reuters R8 as well, which is downloaded")
    parser.add_argument("--minutes", type=float, default=60, help="most that the kills of one job may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.documents, options.arms)
        for name in options.campaigns:
            started = time.monotonic()
            figures[name] = CAMPAIGNS[name](bench, options) | {"seconds": round(time.monotonic() - started)}
            print(f"{name}: {len(figures[name]['lost'])} lost, {figures[name]['seconds']} s")
        figures = json.loads(json.dumps(figures).replace(folder, ""))
    if options.json:
        written = figures if len(figures) > 1 else figures[options.campaigns[0]]
        options.json.write_text(json.dumps(written, indent=1) + "\n")
    return 1 if any(one["lost"] for one in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

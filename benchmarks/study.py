"""A whole study in one program against one process a model: wall-clock and peak memory of both, and their ratio.

The study trains the joint arms and a fixed-size model at each dim through one compiled step, `--seeds` times. Apart,
each model is what a user would start by hand: its own process, the fixed-size ones really of that width (a smaller
network, so a cheaper step). Models of other seeds and settings cost the same, so apart only seed 0 is run, and its time
multiplied.

    python benchmarks/study.py                      # reuters_r52, full length, 5 seeds
    python benchmarks/study.py --steps 20           # runs of seconds, where starting up is what counts
    python benchmarks/study.py --steps 20 evaluation.refit=null evaluation.neighbours=false      # … training alone
    python benchmarks/study.py --steps 20 --trials 15 evaluation.refit=null evaluation.neighbours=false    # settings
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOINT = ("mrl", "mrl_e", "mrl_sampled")
GIB = 1024**3


def run(*words: str) -> dict[str, float]:
    """Seconds and peak resident bytes of `python -m mrl_jax.train` with these words."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "mrl_jax.train", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"mrl_jax.train {' '.join(words)} failed")
    return {"seconds": time.monotonic() - started, "bytes": usage.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="reuters_r52")
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=0, help="settings that each arm tries")
    parser.add_argument("--steps", type=int, help="steps a model; the experiment's own number by default")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("words", nargs="*", help="further key=value words for every run")
    options = parser.parse_args()

    length = [] if options.steps is None else [f"trainer.steps={options.steps}"]
    with tempfile.TemporaryDirectory() as folder:
        common = [f"+experiment={options.experiment}", f"results_dir={folder}", *length, *options.words]
        widths = f"nesting_dims={options.dims}".replace(" ", "")
        joint = [widths, f"width={options.dims[-1]}"]
        apart = {arm: run(*common, *joint, f"arms=[{arm}]", f"run={arm}") for arm in JOINT}
        for m in options.dims:
            apart[f"ff{m}"] = run(*common, "arms=[ff]", f"nesting_dims=[{m}]", f"width={m}", f"run=ff{m}")
        every = [f"arms=[{','.join(JOINT)},ff]", f"seeds={options.seeds}", f"tune.trials={options.trials}"]
        study = run(*common, *joint, *every, "run=study")
    each = options.seeds + (options.trials + 1 if options.trials else 0)  # trainings of each arm
    total = each * sum(one["seconds"] for one in apart.values())
    figures = {
        "experiment": options.experiment,
        "steps": options.steps,
        "words": options.words,
        "seeds": options.seeds,
        "trials": options.trials,
        "models": each * len(apart),
        "study": study,
        "apart": apart,
        "apart_seconds": total,
        "ratio": study["seconds"] / total,
    }
    print(
        f"{figures['models']} models: {study['seconds']:.0f} s and {study['bytes'] / GIB:.1f} GiB as one study, "
        f"{total:.0f} s as one process each; ratio {figures['ratio']:.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Small data and short runs that several tests share."""

import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

# Read when JAX and NumPy are imported, here and by the commands that tests start. Each program is compiled once, and
# quickly rather than well; workers of pytest-xdist share the cores, so each does its linear algebra in one thread.
for name, value in {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parent.parent / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "OPENBLAS_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)
# XLA's older generator of code for CPUs, and narrower vectors, compile in two thirds of the time. A version of jaxlib
# that does not know a flag would abort.
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "true" and version("jaxlib").startswith("0.10."):
    flags = ["--xla_cpu_use_fusion_emitters=false"] + ["--xla_cpu_max_isa=AVX2"] * (platform.machine() == "x86_64")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from mrl_jax import report, train  # noqa: E402
from mrl_jax.tasks import baselines  # noqa: E402

# A busy machine is no failure. Where CI is set, every run draws the same examples; elsewhere new ones are searched.
settings.register_profile(
    "mrl_jax", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("mrl_jax")

TOPICS = ("orbit", "hockey", "kernel", "garden")


def write_texts(path: Path, count: int, seed: int) -> Path:
    """JSONL of texts whose words give their topic away, mixed with words that all topics share."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for i in range(count):
            topic = i % len(TOPICS)
            words = [f"{TOPICS[topic]}{n}" for n in rng.integers(0, 30, rng.integers(1, 6))]
            words += [f"common{n}" for n in rng.integers(0, 40, rng.integers(3, 12))]  # 16 words: one padded length
            file.write(json.dumps({"text": " ".join(rng.permutation(words)), "label": TOPICS[topic]}) + "\n")
    return path


@pytest.fixture(scope="session", autouse=True)
def no_plots() -> Iterator[None]:
    """Runs in this process draw no plots, which would take as long as all the rest of a tiny run, and have no
    baselines by default."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            train, "report", SimpleNamespace(table=report.table, behind=report.behind, draw=lambda directory: [])
        )
        patched.setattr(baselines, "MAX_DEFAULT_SIZE", 0)  # nor baselines, unless a test asks for them
        yield


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of a train and a test file with four classes."""
    folder = tmp_path_factory.mktemp("texts")
    return {"train": write_texts(folder / "train.jsonl", 240, 0), "test": write_texts(folder / "test.jsonl", 80, 1)}


@pytest.fixture(scope="session")
def tiny(texts: dict[str, Path]) -> list[str]:
    """A command line for a run of about a second."""
    return [
        "data=files",
        f"data.train={texts['train']}",
        f"data.test={texts['test']}",
        "name=tiny",
        "recipe=none",
        "width=16",
        "nesting_dims=[4,8,16]",
        "trainer.steps=30",
        "trainer.batch_size=32",
        "trainer.log_every=5",
        "trainer.evaluations=3",
        "optimizer.learning_rate=0.02",
    ]


@pytest.fixture(scope="session")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three kinds of arms."""
    results = tmp_path_factory.mktemp("results")
    command = [*tiny, "arms=[mrl,mrl_e,ff]", "evaluation.neighbours=false", "evaluation.refit=null"]
    assert train.main([*command, f"results_dir={results}", "run=first"]) == 0
    return results / "tiny" / "first"

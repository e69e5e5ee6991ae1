"""Several processes on one machine: they train and evaluate as one would, stop together, and notice a lost one."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl_jax import config, train
from mrl_jax.runs import Log, MetricRow, read_rows
from mrl_jax.system import processes
from mrl_jax.system.errors import UserError

ROOT = Path(__file__).parents[2]
Start = Callable[..., list[subprocess.Popen[str]]]

# Several runs by the same processes, as the jobs of a sweep would be.
WORKER = "import json, sys\nfrom mrl_jax import train\nfrom mrl_jax.system import processes\n" + (
    "processes.leave(max(train.main(words) for words in json.loads(sys.argv[1])))"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `count` processes that run the command lines `jobs` one after another; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(count: int, jobs: Sequence[Sequence[str]], mode: str = "explicit") -> list[subprocess.Popen[str]]:
        port = free_port()
        for rank in range(count):
            words, variables = [f"distributed={mode}"], {}
            if mode == "explicit":
                words += [f"distributed.coordinator=127.0.0.1:{port}", f"distributed.processes={count}"]
                words += [f"distributed.process={rank}"]
            elif mode == "slurm":  # what srun tells a task; JAX makes the port of the job's number
                variables = {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_NODES": "1"}
                variables |= {"SLURM_NTASKS": str(count), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
            else:
                values = (f"127.0.0.1:{port}", str(count), str(rank))
                variables = dict(zip(processes.COORDINATOR_VARIABLES, values, strict=True))
            command = [sys.executable, "-c", WORKER, json.dumps([[*job, *words] for job in jobs])]
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}, **pipes))  # type: ignore[call-overload]
        return started

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ends(workers: list[subprocess.Popen[str]], timeout: float = 900) -> list[tuple[int, str]]:
    """Exit status and standard error of each."""
    errors = [worker.communicate(timeout=timeout)[1] for worker in workers]
    return [(worker.returncode, text) for worker, text in zip(workers, errors, strict=True)]


JOBS = ("classes", "together", "pairs")


def command(job: str, tiny: list[str], pairs: Path, folder: Path) -> list[str]:
    """Classes with one arm (its batches are shared out), four arms together (themselves shared out), or pairs."""
    quick = [
        "evaluation.quantised=false",
        "evaluation.interpolated=false",
        "evaluation.baseline=none",
        "nesting_dims=[4,16]",
    ]
    quick += ["trainer.evaluations=2", f"results_dir={folder}", f"run={job}"]
    words = {
        "classes": [*tiny, "arms=[mrl_e]", "evaluation.refit=ridge"],
        "together": [*tiny, "arms=[mrl,ff]", "trainer.population=vmap", "trainer.arms_at_once=4"],
        "pairs": [
            *(word for word in tiny if not word.startswith("data")),
            *("data=pairs", *(f"data.{part}={pairs / part}.jsonl" for part in ("train", "test"))),
            *("loss.name=info_nce", "arms=[mrl,untuned]"),
        ],
    }
    refit = ["evaluation.refit=null"] if job == "together" else []
    return [*words[job], *quick, *refit]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with a hard negative: a word of the anchor is in the positive, and of another anchor in the negative."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for part, count in (("train", 90), ("test", 37)):
        with (folder / f"{part}.jsonl").open("w") as file:
            for i in range(count):
                words = " ".join(f"filler{n}" for n in rng.integers(0, 20, 4))
                texts = (
                    f"topic{i % 30} {part}{i} {words}",
                    f"topic{i % 30} reply{i}",
                    f"topic{(i + 7) % 30} reply{i + 1}",
                )
                names = ("anchor", "positive", "negative")
                file.write(json.dumps(dict(zip(names, texts, strict=True))) + "\n")
    return folder


def values(rows: Sequence[MetricRow]) -> tuple[list[tuple[object, ...]], list[float]]:
    return [row[:-1] for row in rows], [row.value for row in rows]


@pytest.mark.parametrize(
    ("count", "mode", "jobs"),
    [(2, "slurm", JOBS[:1]), (4, "env", JOBS)],
)
@pytest.mark.slow
def test_processes_give_the_numbers_of_one(
    count: int, mode: str, jobs: Sequence[str], start: Start, tiny: list[str], pairs: Path, tmp_path: Path
) -> None:
    """80 test texts, 24 validation texts and 37 pairs: 4 processes have batches that none of them can fill."""
    for job in jobs:
        assert train.main(command(job, tiny, pairs, tmp_path / "alone")) == 0
    for status, errors in ends(start(count, [command(job, tiny, pairs, tmp_path) for job in jobs], mode)):
        assert status == 0, errors
    for run in jobs:
        one, many = tmp_path / "alone" / "tiny" / run, tmp_path / "tiny" / run
        assert json.loads((many / "environment.json").read_text())["processes"] == count
        expected, found = (values(read_rows(folder / "evaluation.csv")) for folder in (one, many))
        assert found[0] == expected[0]
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
        expected, found = ([line["loss"] for line in Log(folder / "metrics.jsonl").read()] for folder in (one, many))
        assert len(found) == len(expected) > 5
        for a, b in zip(expected, found, strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def begun(log: Path, workers: list[subprocess.Popen[str]]) -> None:
    """Wait until a run is trained."""
    while not log.exists() or log.read_text().count("\n") < 4:
        for worker in workers:
            assert worker.poll() is None, worker.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_one_continues_the_run_of_two(
    start: Start, tiny: list[str], tmp_path: Path
) -> None:
    """Also: a run that two processes began is resumed by three, after SIGTERM reached one of them, and by one."""
    words = [*tiny, "trainer.steps=3000", "trainer.batch_size=36", "evaluation.refit=null", "evaluation.baseline=none"]
    words += ["trainer.checkpoint_seconds=0.2", "trainer.log_every=20", "nesting_dims=[4,16]", "run=shared"]
    words += [f"results_dir={tmp_path}"]
    log = tmp_path / "tiny" / "shared" / "metrics.jsonl"
    workers = start(2, [[*words, "resume=auto"]])
    begun(log, workers)
    workers[1].kill()
    killed = time.monotonic()
    status, said = ends(workers)[0]
    assert status == 75
    assert time.monotonic() - killed < 30
    assert "another of the 2 processes is gone" in said
    assert "resume=true" in said
    assert "Traceback" not in said

    reached = Log(log)
    before = max(line["step"] for line in reached.read())
    workers.clear()
    workers = start(3, [[*words, "resume=auto"]])
    while max(line["step"] for line in reached.read()) <= before + 20:
        assert all(process.poll() is None for process in workers), workers[0].communicate()
        time.sleep(0.02)
    workers[2].send_signal(signal.SIGTERM)
    for status, said in ends(workers):
        assert status == 75
        assert re.search(r"stopped at step \d+ of 3000", said), said
        assert "Traceback" not in said

    assert train.main([*words, "resume=true"]) == 0
    assert train.main([*words, "run=whole"]) == 0
    shared, whole = (
        [line["step"] for line in Log(log.parent.parent / run / "metrics.jsonl").read()] for run in ("shared", "whole")
    )
    assert shared == whole
    expected, found = (values(read_rows(log.parent.parent / run / "evaluation.csv")) for run in ("whole", "shared"))
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], atol=0.03)  # 3,000 steps on 216 texts, summed in another order


IDLE = """
import sys, time
from mrl_jax.system import processes
from mrl_jax.config import DistributedConfig
rank = int(sys.argv[1])
processes.start(DistributedConfig("explicit", f"127.0.0.1:{sys.argv[2]}", 2, rank, 60, heartbeat_seconds=4))
print("connected", flush=True)
time.sleep(float(sys.argv[3]) / (2 - rank))
processes.leave(0)
"""


def idle(seconds: float) -> list[subprocess.Popen[str]]:
    """Two connected processes that exchange nothing for so long (process 0 for half of it), and then leave."""
    port, pipes = str(free_port()), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", IDLE]
    both = [subprocess.Popen([*command, str(rank), port, str(seconds)], cwd=ROOT, **pipes) for rank in (0, 1)]  # type: ignore[call-overload]
    for process in both:
        assert process.stdout.readline() == "connected\n", process.stderr.read()
    return both


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        (0, signal.SIGKILL),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_works_by_itself_notices_that_another_is_gone(victim: int, how: signal.Signals) -> None:
    both = idle(120)
    try:
        both[victim].send_signal(how)
        _, said = both[1 - victim].communicate(timeout=60)
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert both[1 - victim].returncode == 75
    last = said.splitlines()[-1]
    assert last.startswith(f"error: process {victim} of 2 is gone or silent, so process {1 - victim} stops")
    assert "resume=true" in last


def test_a_process_that_ends_first_is_not_missed() -> None:
    both = idle(12)
    if sys.platform == "linux":
        assert [os.sched_getscheduler(process.pid) for process in both] == [os.SCHED_BATCH] * 2
    for process in both:  # one of them ends well before the heartbeat timeout of JAX, and waits for the other
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies are Linux'")
@pytest.mark.parametrize(("given", "then"), [("SCHED_OTHER", "SCHED_BATCH"), ("SCHED_IDLE", "SCHED_IDLE")])
def test_later_threads_do_not_preempt_and_a_policy_that_was_chosen_stays(given: str, then: str) -> None:
    found: list[int] = []

    def connecting() -> None:
        os.sched_setscheduler(0, getattr(os, given), os.sched_param(0))
        processes._schedule_as_batch()
        later = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
        later.start()
        later.join()

    thread = threading.Thread(target=connecting)  # the policy is one of this thread, not of the tests
    thread.start()
    thread.join()
    assert found == [getattr(os, then)]


COLLECTIVES = """
import os, sys, json, re
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "false"  # what is moved is what an optimised program moves
import jax, numpy as np
from mrl_jax import arms, config
from mrl_jax.tasks import train_step
from mrl_jax.training.placement import Layout

def moved(words, columns, members):
    settings = config.from_command_line(words)
    classes = list("abc") * (columns == 1)
    described = {"inputs": {"features": [12]}, "vocabulary": 0, "classes": classes, "columns": columns}
    program = train_step(settings, described)
    arm = arms.expand(settings.arms, settings.nesting_dims)[0]
    layout = Layout.of(program, members)
    shape = () if members is None else (members,)
    def shaped(x, sharding):
        return jax.ShapeDtypeStruct((*shape, *x.shape), x.dtype, sharding=sharding)
    state, key = jax.eval_shape(program.init, 0), jax.eval_shape(lambda: jax.random.key(0))
    label = np.zeros(32, np.int32 if columns == 1 else np.float32)
    batch = {"features": np.zeros((32 * columns, 12), np.float32), "label": label}
    row = arm.row(program.kinds)
    args = [jax.tree.map(lambda x: shaped(x, s), t) for t, s in
            ((state, layout.state), (batch, layout.batch), (row, layout.state), (key, layout.state))]
    text = layout.step.lower(*args).compile().as_text()
    size = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    bytes_of = {}
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(-start)?\\(", line)
        if match:
            arrays = re.findall(r"(f32|s32|u32|pred|bf16)\\[([\\d,]*)\\]", match[1])
            bytes_of[match[2]] = bytes_of.get(match[2], 0) + sum(
                size[kind] * int(np.prod([int(n) for n in shape.split(",") if n] or [1])) for kind, shape in arrays)
    return bytes_of, sum(x.size * 4 for x in jax.tree.leaves(state.model.params))

print(json.dumps([moved(*case) for case in json.loads(sys.argv[1])]))
"""


@pytest.mark.slow
def test_a_step_moves_what_was_counted_on_paper() -> None:
    """Classes: one sum of the gradients, and K losses. Pairs: also the embeddings, which every query is compared with.
    Members on devices of their own: nothing. Bytes by collective in steps compiled for two devices."""
    base = ["data=features", "data.train=a.npz", "data.test=a.npz", "encoder=mlp", "width=16", "nesting_dims=[4,16]"]
    classes, pairs = [*base, "arms=[mrl]"], [*base, "arms=[mrl]", "loss.name=info_nce", "data.task=pairs"]
    cases = [(classes, 1, None), (classes, 1, 2), (pairs, 2, None)]
    done = subprocess.run(
        [sys.executable, "-c", COLLECTIVES, json.dumps(cases)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (gradients, parameters), (of_members, _), (contrastive, of_pairs) = json.loads(done.stdout.splitlines()[-1])
    assert set(gradients) == {"all-reduce"}
    assert parameters <= gradients["all-reduce"] <= parameters + 64
    assert of_members == {}
    embeddings = 2 * 32 * 16 * 4
    assert sum(contrastive.values()) >= of_pairs
    assert sum(contrastive.values()) <= of_pairs + 8 * embeddings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distributed=explicit"], "distributed.coordinator is missing"),
        (
            ["distributed.processes=2"],
            "distributed.processes=2 is not allowed with distributed=none; it needs explicit",
        ),
        (["distributed=slrm"], "did you mean slurm"),
        (["distributed=env", "distributed.heartbeat_seconds=0"], "distributed.heartbeat_seconds=0 is not allowed"),
    ],
)
def test_a_mistyped_key_is_named(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        config.from_command_line(words)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"coordinator": "host", "processes": 2, "process": 0},
            "distributed.coordinator=host is not allowed; host:port",
        ),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "distributed.process=2 is not allowed; 0 to 1"),
        ({"coordinator": "host:1", "processes": 0, "process": 0}, "processes=0 is not allowed; at least 1"),
    ],
)
def test_a_wrong_place_among_the_processes_is_refused(keys: dict[str, object], said: str) -> None:
    words = [f"distributed.{key}={value}" for key, value in keys.items()]
    with pytest.raises(UserError, match=re.escape(said)):
        config.from_command_line(["distributed=explicit", *words])


def test_an_environment_that_says_half_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is set, JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is not"):
        processes.start(config.DistributedConfig("env"))
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(UserError, match="there is no SLURM_PROCID; start the processes with srun"):
        processes.start(config.DistributedConfig("slurm"))


def test_a_process_that_nobody_joins_says_so(start: Start, tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, f"results_dir={tmp_path}", "distributed.connect_seconds=3"]
    workers = start(2, [words])
    workers[0].kill()
    status, said = ends(workers)[1]
    assert status == 2
    assert "have not found each other within distributed.connect_seconds=3" in said
    assert "stack trace" not in said
    assert not (tmp_path / "tiny").exists()


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 5))
def test_each_item_is_computed_by_one_process_and_known_to_all(items: list[int], count: int) -> None:
    """Every process in turn, with a sum in place of the network."""
    computed: list[list[int]] = []
    sent: list[np.ndarray] = []

    def run(rank: int, broadcast: Callable[..., np.ndarray]) -> list[np.ndarray]:
        mine: list[int] = []
        computed.append(mine)

        def work(item: int) -> np.ndarray:
            mine.append(item)
            return np.full((item, 2), item, np.float32)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(processes, "count", lambda: count)
            patched.setattr(processes, "rank", lambda: rank)
            patched.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
            return processes.by_items(work, items, lambda item: (item, 2))

    def send(part: np.ndarray, is_source: bool) -> np.ndarray:
        assert is_source
        sent.append(part)
        return part

    for rank in range(count):
        run(rank, send)
    loads = [sum(mine) for mine in computed]
    assert sorted(itertools.chain(*computed)) == sorted(items)
    assert max(loads) <= sum(items) / count + max(items, default=0)  # the bound of a greedy schedule
    found = run(0, lambda part, is_source: np.sum(sent, axis=0))
    assert [part.tolist() for part in found] == [[[item, item]] * item for item in items]


def test_one_process_is_all_there_is() -> None:
    assert (processes.count(), processes.rank(), processes.is_process0()) == (1, 0, True)
    rows = np.array([2, 0, 1])
    np.testing.assert_array_equal(
        processes.gather_rows(np.array([[5.0], [6.0], [7.0]]), rows, 3), [[6.0], [7.0], [5.0]]
    )
    assert processes.lost_peer_message(ValueError("Gloo all-reduce failed")) is None

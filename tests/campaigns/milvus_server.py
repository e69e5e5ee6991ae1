"""A Milvus server of one process on this machine, from the wheel `milvus`, that can be killed and started again."""

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import milvus

START_SECONDS = 180
PASSWORD = "Milvus"  # of root, where no other was set
ADDRESSES = ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl


# Of the store for what the server knows of itself, which runs in the same process; its own ports are fixed.
ETCD = """
name: default
listen-client-urls: http://127.0.0.1:{0}
advertise-client-urls: http://127.0.0.1:{0}
listen-peer-urls: http://127.0.0.1:{1}
initial-advertise-peer-urls: http://127.0.0.1:{1}
initial-cluster: default=http://127.0.0.1:{1}
"""


class MilvusServer:
    """A server in a folder of its own, on ports that are free; whoever starts it stops it.

    Its parts talk to each other by 127.0.0.1, as its clients do. It listens on every interface all the same, which it
    has no setting for: give it a token where others can reach the machine.
    """

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None) -> None:
        """
        Args:
            folder: for its data, its logs and its program, about 250 MB; a server of before continues there.
            settings: keys of its configuration, such as authorization_enabled or queryNode.enableDisk.
        """
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        config = milvus.MilvusServerConfig(data_dir=str(folder))
        names = [name for name in config.configurable_items if name.endswith("_port")]
        *ports, self._health_port, peer_port = free_ports(len(names) + 2)
        config.update(**dict(zip(names, ports, strict=True)))
        for key, value in {**{f"{part}.ip": "127.0.0.1" for part in ADDRESSES}, **(settings or {})}.items():
            config.set(key, value)
        config.resolve()
        etcd = folder / "configs" / "etcd.yaml"
        etcd.write_text(ETCD.format(config.get("etcd_port"), peer_port))
        settings_file = folder / "configs" / "milvus.yaml"
        text = settings_file.read_text(encoding="utf-8")
        settings_file.write_text(text.replace("\netcd:\n", f"\netcd:\n  config:\n    path: {etcd}\n"), encoding="utf-8")
        milvus._initialize_data_files(str(folder))
        self.port = int(config.get("proxy_port"))
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it says that it is ready. Raises RuntimeError where it does not get there."""
        environment = {
            **os.environ,
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(self._health_port),
            "MILVUS_RUN_DIR": str(self.folder / "run"),
            "LD_LIBRARY_PATH": str(self.folder / "bin"),
        }
        with (self.folder / "logs" / "output.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.folder / "bin" / "milvus"), "run", "standalone"], cwd=self.folder, env=environment,
                stdout=log, stderr=log, preexec_fn=_die_with_parent,
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}: {self.last_lines()}")
            if self._is_ready():
                return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"the server was not ready after {START_SECONDS} s: {self.last_lines()}")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health_port}/healthz", timeout=5) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False

    def kill(self) -> None:
        """Kill −9."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def last_lines(self) -> str:
        return (self.folder / "logs" / "output.log").read_text(errors="replace")[-2000:]


def free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        held = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


def _die_with_parent() -> None:
    """Let the kernel kill the server when the process that started it is gone, however that ended."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)

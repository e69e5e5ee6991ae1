"""The process of the service. On SIGTERM or Ctrl-C it answers what it began, and ends.

Exit status as of every command: 0 after SIGTERM, 130 after Ctrl-C, 2 for a mistake. A second signal ends it at once.
"""

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from mrl_jax.search.index import open_index
from mrl_jax.search.service.answers import Answers
from mrl_jax.search.service.app import Metrics, Service
from mrl_jax.search.service.options import Limits, token_of
from mrl_jax.search.service.worker import Worker
from mrl_jax.system import console
from mrl_jax.system.errors import UserError
from mrl_jax.system.files import need_folder, path_of

MAX_CONNECTIONS = 512
BACKLOG = 256  # connections that the kernel holds until they are accepted


def serve(options: argparse.Namespace) -> None:
    """Answer requests until a signal. Raises `UserError`, `OSError` or, after Ctrl-C, `KeyboardInterrupt`."""
    token = token_of(options)
    limits = Limits(options.max_body, options.max_texts, options.max_characters, options.timeout)
    metrics = Metrics()
    worker = Worker(
        lambda: Answers(options.index, options.run, options.write, options.max_batch, root_of(options)),
        options.max_wait_ms / 1000, options.max_batch, options.max_waiting, metrics.batch.observe,
    )  # fmt: skip
    with _listen(options.host, options.port) as listener:  # first: a port in use is known before anything is read
        answers = worker.start()
        assert isinstance(answers, Answers)
        try:
            worker.submit("compile", None, []).result()
            facts, (host, port, *_) = answers.facts, listener.getsockname()
            if facts.pictures and not Path(facts.pictures).is_dir():
                console.say(f"the folder of the pictures, {facts.pictures}, is gone: none is shown; see --pictures")
            console.say(
                f"{facts.place}: {facts.documents:,} documents at http://{_in_url(host)}:{port} (/docs says more)"
            )
            service = Service(answers, worker, metrics, limits, token)
            caught = asyncio.run(_run(service, listener))
        finally:
            worker.stop()
    if caught == signal.SIGINT:
        raise KeyboardInterrupt
    console.say("stopped")


def root_of(options: argparse.Namespace) -> str | None:
    """The folder of `--pictures`. Raises `UserError` where it is none, or the documents are texts."""
    if options.pictures is None:
        return None
    folder = path_of("--pictures", options.pictures)
    need_folder(f"--pictures={options.pictures}", folder)
    with contextlib.closing(open_index(options.index)) as index:
        if index.description.pictures is None:
            raise UserError(f"--pictures={options.pictures} is not allowed: the documents of {options.index} are texts")
    return str(folder.resolve())


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: {error.strerror or error}") from None
    with listener:
        yield listener


class _Server(uvicorn.Server):
    """Without uvicorn's handlers of signals, which would raise them again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(service: Service, listener: socket.socket) -> int:
    """Serve until a signal; returns which."""
    server = _Server(
        uvicorn.Config(
            service.app, log_level="warning", access_log=False, lifespan="off", limit_concurrency=MAX_CONNECTIONS,
            server_header=False, ws="none",
        )
    )  # fmt: skip
    caught: list[int] = []

    def stop(number: int) -> None:
        server.force_exit = bool(caught)
        server.should_exit = True
        caught.append(number)
        if len(caught) == 1:
            print("stopping when what was begun is answered", file=sys.stderr)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await server.serve(sockets=[listener])
    return caught[0] if caught else signal.SIGTERM

"""The service as a process: it listens where it says, outlives hostile clients, and ends as it should."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mrl_jax import search

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(trained: Path, texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("process")
    lines = [json.loads(line) for line in texts["train"].read_text().splitlines()]
    corpus = folder / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": line["text"]}) + "\n" for i, line in enumerate(lines))
    )
    assert search.main(["build", str(trained), str(corpus), "--index", str(folder / "index")]) == 0
    return folder / "index"


def start(built: Path, *words: str) -> tuple[subprocess.Popen, int]:
    """The process and its port, once it answers."""
    command = [sys.executable, "-m", "mrl_jax.search", "serve", str(built), "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    for line in process.stderr:
        if match := re.search(r"240 documents at http://127\.0\.0\.1:(\d+) ", line):
            return process, int(match[1])
    raise AssertionError(process.wait())


@pytest.fixture(scope="module")
def port(built: Path) -> Iterator[int]:
    process, port = start(built, "--max-body", "100000", "--timeout", "10")
    yield port
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0
    assert said.endswith("stopping when what was begun is answered\nstopped\n")
    assert "Traceback" not in said


def ask(port: int, text: str = "orbit1") -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/search", json.dumps({"texts": [text]}).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def send(port: int, content: bytes) -> bytes:
    """What comes back for these bytes, until the service closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # what was sent beyond the limit is not read
            connection.sendall(content)
            while part := connection.recv(1 << 16):
                answer += part
        return answer


HEAD = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEAD + b"Content-Length: 1000000000\r\n\r\n{", b"the body has 1,000,000,000 bytes; at most 100,000"),
        (HEAD + b"Content-Length: 10\r\n\r\n{", b"not answered within 10 seconds"),  # the rest never comes
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"ffff\r\n" + b" " * 0xFFFF + b"\r\n") * 2, b""),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_a_hostile_client_is_refused_and_others_are_answered(port: int, content: bytes, said: bytes) -> None:
    assert said in send(port, content)
    assert len(ask(port)["results"][0]["hits"]) == 10


def test_clients_that_hang_up_are_no_trouble(port: int) -> None:
    body = b'{"texts": ["orbit1"]}'
    for content in (HEAD, HEAD + b"Content-Length: 21\r\n\r\n", HEAD + b"Content-Length: 21\r\n\r\n" + body) * 5:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(content)
    assert len(ask(port)["results"][0]["hits"]) == 10


def test_what_was_begun_is_answered_before_the_end(built: Path) -> None:
    process, port = start(built, "--max-wait-ms", "5000")  # each search waits for others that long
    found: list[dict] = []
    threads = [threading.Thread(target=lambda n=n: found.append(ask(port, f"orbit{n}"))) for n in range(4)]
    for thread in threads:
        thread.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:  # all of them are in
        while json.load(answer)["waiting"] < 4:
            assert not found, "answered before all were in"
            answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
    process.send_signal(signal.SIGINT)
    for thread in threads:
        thread.join()
    assert [len(one["results"][0]["hits"]) for one in found] == [10] * 4
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


def test_a_port_in_use_ends_in_a_sentence(built: Path, port: int, capsys: pytest.CaptureFixture) -> None:
    assert search.main(["serve", str(built), "--port", str(port)]) == 2
    assert f"--port={port}: Address already in use" in capsys.readouterr().err

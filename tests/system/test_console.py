"""Progress off a terminal: lines at intervals, also while a step takes long; nothing where it is switched off."""

import io
import re
import sys
import threading
import time

import pytest

from mrl_jax.system import console


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.05)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def wait_for_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    said, end = "", time.monotonic() + 60
    while said.count("\n") < 2 and time.monotonic() < end:
        time.sleep(0.05)
        said += capsys.readouterr().err
    return said.splitlines()


@pytest.mark.usefixtures("often")
def test_a_step_that_takes_long_is_no_silence_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(2000, "train", "step") as bar:
        bar.update(1500)
        bar.set_postfix_str("loss 0.123", refresh=False)
        lines = wait_for_lines(capsys)
    lines += capsys.readouterr().err.splitlines()  # one may come before the end
    assert len(lines) >= 2
    for line in lines:
        assert re.fullmatch(r"train: 1,500 of 2,000 steps, \d+ s so far, loss 0\.123", line), line
    time.sleep(0.2)
    assert capsys.readouterr().err == ""  # it is over


@pytest.mark.usefixtures("often")
def test_a_stage_without_steps_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with console.stage("reading data=files"):
        lines = wait_for_lines(capsys)
    assert re.fullmatch(r"reading data=files: \d+ s so far", lines[0])


@pytest.mark.usefixtures("often")
def test_no_line_comes_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            writing.set()
            time.sleep(0.2)
            return super().write(text)

    writing, stderr = threading.Event(), Slow()
    monkeypatch.setattr(sys, "stderr", stderr)
    with console.stage("reading"):
        assert writing.wait(60)
    printed = stderr.getvalue()
    time.sleep(0.5)
    assert printed.endswith("\n")
    assert stderr.getvalue() == printed


@pytest.mark.usefixtures("often")
def test_what_ends_soon_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 30.0)
    with console.progress(3, "train", "step") as bar:
        bar.update(3)
        bar.refresh()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_nothing_is_shown_where_progress_is_switched_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with console.stage("reading"), console.progress(3, "train", "step"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_at_a_terminal_there_are_bars_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.stage("reading"), console.progress(3, "train", "step") as bar:
        bar.update(3)
        time.sleep(0.2)
    assert "3/3" in terminal.getvalue()
    assert "so far" not in terminal.getvalue()
    assert "reading" not in terminal.getvalue()

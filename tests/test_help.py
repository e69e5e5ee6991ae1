"""--help explains every key in a line, and a flag that there is not is answered with the key that was meant."""

import subprocess
import sys
from pathlib import Path

import pytest

from mrl_jax import train
from mrl_jax.config import help as help_page
from mrl_jax.encoders import ENCODERS


@pytest.mark.parametrize("cls", [*help_page.SECTIONS.values(), *(entry.config for entry in ENCODERS.values())])
def test_every_key_has_a_comment(cls: type) -> None:
    comments = dict(help_page.comments(cls))
    assert list(comments) == list(cls.__annotations__)  # its own: a source of a mixture has all of `data` too
    assert {name for name, text in comments.items() if not text} <= {"name"}


def test_help_shows_commands_and_keys_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["+experiment=smoke", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("+experiment=newsgroups resume=true", "trainer.epochs", "encoder.word_dropout", "data.train", "smoke"):
        assert part in shown


def test_help_into_a_pipe_that_closes_is_no_traceback() -> None:
    command = f"{sys.executable} -m mrl_jax.train --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--epochs=3", "there is no flag --epochs=3; write trainer.epochs=3"),
        ("--batch-size=3", "there is no flag --batch-size=3; write trainer.batch_size=3"),
        ("--seeds", "there is no flag --seeds; write seeds=…"),
        ("--hlep", "there is no flag --hlep (did you mean help?); settings are words key=value"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_key(flag: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["+experiment=smoke", flag]) == 2
    assert answer in capsys.readouterr().err

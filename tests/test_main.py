"""`python -m mrl_jax`: which commands there are."""

import importlib.util

import pytest

from mrl_jax.__main__ import COMMANDS, main


def test_the_commands_are_listed_and_can_be_run(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for name in COMMANDS:
        assert f"python -m mrl_jax.{name} " in said
        spec = importlib.util.find_spec(f"mrl_jax.{name}")
        assert spec is not None
        assert not spec.submodule_search_locations or importlib.util.find_spec(f"mrl_jax.{name}.__main__")


def test_a_command_that_is_written_otherwise_is_named(capsys: pytest.CaptureFixture) -> None:
    for word, said in (("search", "python -m mrl_jax.search is the command"), ("serch", "did you mean search?")):
        assert main([word]) == 2
        assert said in capsys.readouterr().err

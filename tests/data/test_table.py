"""The table of sources is complete: every entry can be read as it says, and no key of `data` belongs to nobody."""

import dataclasses
import inspect
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import mrl_jax.data.sources
from mrl_jax.data import GENERAL_KEYS, SOURCES, DataConfig, Dataset, MixedDataset, PairDataset, TextDataset, load
from mrl_jax.data.config import Task
from mrl_jax.system.errors import UserError

KEYS = [field.name for field in dataclasses.fields(DataConfig)]
DELIVERED = {"classes": Dataset, "pairs": PairDataset, "texts": TextDataset, "mixture": MixedDataset}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_reader_of_each_of_its_tasks(name: str) -> None:
    assert SOURCES[name].readers
    for task, module in SOURCES[name].readers.items():
        read = import_module(f"mrl_jax.data.sources.{module}").read
        assert list(inspect.signature(read).parameters) == ["config"]
        assert get_type_hints(read)["return"] is DELIVERED[task]
        assert DELIVERED[task].task == task


def test_every_module_of_sources_is_read_by_an_entry() -> None:
    files = {path.stem for path in Path(mrl_jax.data.sources.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {module for source in SOURCES.values() for module in source.readers.values()}


def test_every_task_has_a_source() -> None:
    assert {task for source in SOURCES.values() for task in source.readers} == set(get_args(Task)) == set(DELIVERED)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_with_several_tasks_lets_the_user_choose(name: str) -> None:
    assert ("task" in SOURCES[name].keys) == (len(SOURCES[name].readers) > 1)


def test_every_key_is_general_or_used_by_a_source() -> None:
    used = {key for source in SOURCES.values() for key in source.keys}
    assert used.isdisjoint(GENERAL_KEYS)
    assert {*used, *GENERAL_KEYS} == set(KEYS)


def example(key: str) -> object:
    """A value that the key may have."""
    return {"task": "classes", "image_size": 8, "streaming": True}.get(key, "name")


@pytest.mark.parametrize("key", sorted({*KEYS} - {*GENERAL_KEYS}))
def test_a_key_is_refused_by_every_source_that_does_not_use_it(key: str) -> None:
    owners = [name for name, source in SOURCES.items() if key in source.keys]
    for name in SOURCES.keys() - owners:
        with pytest.raises(UserError, match=f"data.{key} is not used by data={name}; it belongs to") as error:
            load(DataConfig(name, **{key: example(key)}))  # type: ignore[arg-type]
        assert str(error.value).partition("belongs to ")[2].replace(" and ", ", ").split(", ") == owners

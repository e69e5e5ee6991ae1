"""Hydra: conf/ and the words of the command line composed into one mapping, and its errors as one sentence."""

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mrl_jax.config.parse import parse
from mrl_jax.config.schema import DEFAULTS, Config, OptimizerConfig
from mrl_jax.data import SOURCES, DataConfig
from mrl_jax.encoders import ENCODERS
from mrl_jax.errors import UserError, nearest, one_of
from mrl_jax.processes import DistributedConfig

PACKAGE = Path(__file__).parents[1]
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())

DISTRIBUTED = get_args(get_type_hints(DistributedConfig)["mode"])
OPTIMIZERS = {
    "adamw": OptimizerConfig(),
    "sgd": OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=1e-4),
}


def register() -> None:
    """Tell Hydra the defaults of every option; conf/ then only says what differs."""
    store = ConfigStore.instance()
    base = {
        "name": None,
        "width": 256,
        "nesting_dims": "log",
        "arms": None,
        "seeds": 1,
        "results_dir": "results",
        "run": None,
        "resume": False,
    }
    store.store(name="defaults", node=base | {key: dataclasses.asdict(cls()) for key, cls in DEFAULTS.items()})
    for name, encoder in ENCODERS.items():
        store.store(group="encoder", name=name, node=dataclasses.asdict(encoder.config()))
    for source in SOURCES:
        store.store(group="data", name=source, node=dataclasses.asdict(DataConfig(source=source)))
    for name, optimizer in OPTIMIZERS.items():
        store.store(group="optimizer", name=name, node=dataclasses.asdict(optimizer))
    for mode in DISTRIBUTED:
        store.store(group="distributed", name=mode, node=dataclasses.asdict(DistributedConfig(mode)))


register()


def from_command_line(overrides: list[str]) -> Config:
    """Compose conf/ with `overrides` (`key=value` words) and check the outcome; raises `UserError`."""
    for word in overrides:
        if word.lstrip("+~").startswith("hydra"):
            raise UserError(f"{word} is not for a single run; add --multirun, or leave it out")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            composed = compose("config", overrides=overrides)
        except (HydraException, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
            raise UserError(explain(error, overrides)) from None
    try:
        return parse(OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from None


def explain(error: Exception, overrides: list[str]) -> str:
    """One sentence for what Hydra says in several, naming the override at fault and the nearest allowed one."""
    parsed = []
    for word in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(word))
        except (HydraException, ValueError) as syntax:  # of a number that Python finds too long, a ValueError
            return (
                f"cannot read {word}: {str(syntax).splitlines()[0]}; every word is key=value, and a value with spaces, "
                "brackets or letters beyond ASCII stands in quotes within quotes: \"data.train='my file.csv'\""
            )
    groups, keys = _options(), _keys(overrides)
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if key == "experiment" and not override.is_add():
            return f"write +experiment={value} (with a plus sign): experiments are added to the configuration"
        if key in groups:
            one_of(key, value if isinstance(value, str) else str(value), groups[key])
        elif key not in keys and not override.is_add():
            level = key.rpartition(".")[0] + "." if "." in key else ""
            beside = sorted({level + k.removeprefix(level).split(".")[0] for k in keys if k.startswith(level)})
            known = beside or sorted({k.split(".")[0] for k in keys})
            return f"unknown key {key}{nearest(key, [*known, *groups])}; allowed: {', '.join(known)}"
    return " ".join(str(error).split())


def _options() -> dict[str, list[str]]:
    """The options of every group: files in conf/ and stored defaults."""
    return {
        "experiment": sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")),
        "data": list(SOURCES),
        "encoder": list(ENCODERS),
        "optimizer": list(OPTIMIZERS),
        "distributed": list(DISTRIBUTED),
    }


def _keys(overrides: list[str]) -> list[str]:
    """The keys that exist once the groups named in `overrides` are chosen: what a `key=value` may set."""
    groups = _options()
    named = [o.lstrip("+").partition("=") for o in overrides]
    composed = compose(
        "config", overrides=[f"{k}={v}" for k, _, v in named if k != "experiment" and v in groups.get(k, ())]
    )
    flat: list[str] = []

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat.append(prefix + key)

    walk(OmegaConf.to_container(composed), "")  # type: ignore[arg-type]
    return flat

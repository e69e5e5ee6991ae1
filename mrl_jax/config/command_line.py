"""Hydra: conf/ and the words of the command line composed into one mapping, and its errors as one sentence."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mrl_jax.config.parse import parse
from mrl_jax.config.recipes import AUTO, KEYS
from mrl_jax.config.schema import DEFAULTS, Config, OptimizerConfig
from mrl_jax.data import SOURCES, DataConfig
from mrl_jax.encoders import ENCODERS
from mrl_jax.system.errors import UserError, nearest, one_of
from mrl_jax.system.processes import DistributedConfig

PACKAGE = Path(__file__).parents[1]
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())

DISTRIBUTED = get_args(get_type_hints(DistributedConfig)["mode"])
OPTIMIZERS = {
    "adamw": OptimizerConfig(),
    "sgd": OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=1e-4),
}
# Keys that hold a path, or any text that a user may choose: taken to the letter.
TEXT_KEYS = (
    *("name", "run", "results_dir", "encoder.weights", "encoder.tokenizer", "loss.teacher", "loss.guide"),
    *("encoder.text.weights", "encoder.text.tokenizer", "encoder.image.weights"),
    *(f"data.{key}" for key, hint in get_type_hints(DataConfig).items() if hint == str | None),
)


def register() -> None:
    """Tell Hydra the defaults of every option; conf/ then only says what differs."""
    store = ConfigStore.instance()
    base = {
        "name": None,
        "width": 256,
        "nesting_dims": "log",
        "nesting_layers": None,
        "nesting_hidden": None,
        "arms": None,
        "seeds": 1,
        "results_dir": "results",
        "run": None,
        "resume": False,
        "recipe": None,
    }
    store.store(name="defaults", node=base | {key: _node(key, cls()) for key, cls in DEFAULTS.items()})
    for name, encoder in ENCODERS.items():
        store.store(group="encoder", name=name, node=_node("encoder", encoder.config()))
    for source in SOURCES:
        store.store(group="data", name=source, node=dataclasses.asdict(DataConfig(source=source)))
    for name, optimizer in OPTIMIZERS.items():
        plain = optimizer != OptimizerConfig()  # chosen by name, with rates of its own
        node = dataclasses.asdict(optimizer) if plain else _node("optimizer", optimizer)
        store.store(group="optimizer", name=name, node=node)
    for mode in DISTRIBUTED:
        store.store(group="distributed", name=mode, node=dataclasses.asdict(DistributedConfig(mode)))


def _node(section: str, defaults: Any) -> dict[str, Any]:
    """The defaults of a section; a key that recipes choose is left to them, and a tower is only named, so that the keys
    of one do not stay when another is chosen."""
    found = dataclasses.asdict(defaults)
    for item in dataclasses.fields(defaults):
        if "reads" in item.metadata:
            found[item.name] = {"name": getattr(defaults, item.name).name}
    return {key: AUTO if f"{section}.{key}" in KEYS else value for key, value in found.items()}


register()


def from_command_line(overrides: list[str]) -> Config:
    """Compose conf/ with `overrides` (`key=value` words) and check the outcome; raises `UserError`."""
    for word in overrides:
        if word.lstrip("+~").startswith("hydra"):
            raise UserError(f"{word} is not for a single run; add --multirun, or leave it out")
        if (twice := repeated_key(word)) is not None:
            raise UserError(f"{word.partition('=')[0]} names {twice} twice; every name of a mapping stands once")
    overrides = [quote(word) for word in with_encoder(overrides)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            composed = compose("config", overrides=overrides)
        except (HydraException, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
            raise UserError(explain(error, overrides)) from None
    try:
        return parse(OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from None


SUITED = {"data=features": "encoder=mlp", "data=image_text": "encoder=towers"}
TOWER_KEY = re.compile(r"encoder\.(image|text)[.=]")


def with_encoder(words: list[str]) -> list[str]:
    """`words`, with the encoder that suits the data where they name that and neither encoder nor experiment. The key of
    a tower is added where it is not there yet: which there are, depends on the encoder that it is."""
    keys = {word.lstrip("+").partition("=")[0] for word in words}
    words = [f"++{word}" if TOWER_KEY.match(word) else word for word in words]
    return words + [SUITED[word] for word in words if word in SUITED and not keys & {"encoder", "experiment"}]


# A text in quotes; the name of an entry, with the mark before it; another bracket.
MAPPING = re.compile(r"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|([{,])\s*([^\s{}\[\],:'"]+)\s*:|([{}\[\]])""")


def repeated_key(word: str) -> str | None:
    """A name that a mapping in the word `key={name: …}` has twice, of which Hydra would take the last; else None."""
    levels: list[set[str]] = []
    key, _, value = word.partition("=")
    for before, name, bracket in MAPPING.findall(value) if key not in TEXT_KEYS else ():
        if before == "{" or bracket in ("{", "["):
            levels.append(set())
        elif bracket and levels:
            levels.pop()
        if name and levels:
            if name in levels[-1]:
                return str(name)
            levels[-1].add(name)
    return None


def quote(word: str) -> str:
    """`word` with the value of a key of `TEXT_KEYS` quoted, as Hydra's grammar stops at =, #, brackets, non-ASCII, ….

    `null`, values in quotes and interpolations (`${oc.env:HOME}`) keep their meaning; `~/` is the home folder.
    """
    given, equals, value = word.partition("=")
    key = given.lstrip("+")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key not in TEXT_KEYS or not equals or value == "null" or quoted or "${" in value:
        return word
    if value.startswith("~/"):
        value = str(Path(value).expanduser())
    # In Hydra a backslash is one unless it stands before a quotation mark, or before the one that ends the value.
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", r"\'"), value)
    return f"{given}='{value}'"


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
        if key == "encoder.prompt":
            return f"unknown key encoder.prompt; it is data.prompts={{default: {value}}} now"
        if key.startswith("data.sources.") and not override.is_add() and not override.is_delete():
            return f"{key} is not in the experiment's file; write ++{key}={value} to add it"
        if key in groups:
            one_of(key, value if isinstance(value, str) else str(value), groups[key])
        elif key not in keys and not override.is_add():
            level = key.rpartition(".")[0] + "." if "." in key else ""
            beside = sorted({level + k.removeprefix(level).split(".")[0] for k in keys if k.startswith(level)})
            known = beside or sorted({k.split(".")[0] for k in keys})
            others = [
                name
                for name, kind in ENCODERS.items()
                if key in {f"encoder.{item.name}" for item in dataclasses.fields(kind.config)}
            ]
            hint = f" (it is of encoder={', '.join(others)})" if others else nearest(key, [*known, *groups])
            return f"unknown key {key}{hint}; allowed: {', '.join(known)}"
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

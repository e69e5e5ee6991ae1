"""config.yaml of a run: written resolved, read as what any stranger may have written, compared when a run resumes."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mrl_jax.config.parse import parse
from mrl_jax.config.schema import Config
from mrl_jax.errors import UserError

# What may differ between a run and the command that resumes it: batches are the same, streamed or not.
NOT_COMPARED = ("resume", "run", "results_dir", "distributed", "data.streaming", "evaluation.print")

MAX_CONFIG_BYTES = 1 << 20  # of a stored configuration


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, as stored with every run."""
    return OmegaConf.to_yaml(_plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # untyped
    """What `to_yaml` writes: plain values, each in one place. No tags, no anchors, and `${…}` is only text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few of them stand for any amount of memory
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1} has an alias, which no run writes")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if len({str(key) for key in keys}) < len(keys):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} begins a section that has a key twice")
        return super().construct_mapping(node, deep)


# As OmegaConf reads numbers: 1e-3 is one, which it is not by YAML 1.1.
_Loader.yaml_implicit_resolvers = {
    sign: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def from_yaml(path: Path) -> Config:
    """The configuration that a run was made with. Nothing in it is resolved: a run may come from anywhere.

    Raises `UserError`, which names the file."""
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has {size:,} bytes, a configuration at most {MAX_CONFIG_BYTES:,}")
        return parse(yaml.load(path.read_text(encoding="utf-8"), _Loader))  # a safe loader
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a configuration: {' '.join(str(error).split())}") from None


def differences(old: Config, new: Config) -> list[str]:
    """`key=old (now new)` for every key in which two configurations differ, but for those of `NOT_COMPARED`."""

    def walk(a: Any, b: Any, key: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return [line for name in {**a, **b} for line in walk(a.get(name), b.get(name), f"{key}.{name}".lstrip("."))]
        return [] if a == b or {key, key.split(".")[0]} & {*NOT_COMPARED} else [f"{key}={a} (now {b})"]

    return walk(_plain(dataclasses.asdict(old)), _plain(dataclasses.asdict(new)), "")

"""config.yaml of a run: written resolved, read as what any stranger may have written, compared when a run resumes."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mrl_jax.config.parse import parse
from mrl_jax.config.recipes import AUTO
from mrl_jax.config.schema import Config
from mrl_jax.data.prompts import DEFAULT
from mrl_jax.losses import LOSSES
from mrl_jax.system.errors import UserError

# What may differ between a run and the command that resumes it: batches are the same, streamed or not, and whoever
# decodes. Baselines are beside the models: resuming may add one.
NOT_COMPARED = (
    "resume",
    "run",
    "results_dir",
    "distributed",
    "data.streaming",
    "data.workers",
    "evaluation.print",
    "recipe",
    "open_keys",
    "evaluation.baseline",
)


def _learns_from_pairs(raw: Mapping[str, Any]) -> bool:
    loss = raw.get("loss")
    name = loss.get("name") if isinstance(loss, dict) else None
    return isinstance(name, str) and name in LOSSES and LOSSES[name].learns_from != "classes"


def _has_mlp(raw: Mapping[str, Any]) -> bool:
    return bool(raw["encoder"].get("name") == "mlp")


# Keys that later versions added: section, key, the value that stands for what runs did before there was the key, and
# the runs that it concerns, where others have the default.
ADDED_KEYS: tuple[tuple[str, str, Any, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("loss", "mask_known", False, _learns_from_pairs),
    ("evaluation", "ignore_identical_ids", False, _learns_from_pairs),
    ("encoder", "standardise", False, _has_mlp),
    ("optimizer", "adaptivity", 1.0, lambda raw: True),
)

LATER_ARMS = ("mrl_pca",)  # not among those that `all` stood for while it was stored as a word; now names are

MAX_CONFIG_BYTES = 1 << 20  # of a stored configuration


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, as stored with every run."""
    plain = _plain(dataclasses.asdict(config))
    for key in plain.pop("open_keys"):
        section, _, name = key.partition(".")
        plain[section][name] = AUTO
    return OmegaConf.to_yaml(plain)


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
    """The configuration that a run was made with. Nothing in it is resolved: a run may come from anywhere. A key of
    `ADDED_KEYS`, or `data.prompts`, that the file lacks has the value that stands for what the run did.

    Raises `UserError`, which names the file."""
    try:
        raw = _with_moved_prompt(_read(path))
        for section, values in _missing_in_run(raw, path).items():
            raw = {**raw, section: {**raw.get(section, {}), **values}}
        config = parse(raw, is_stored=True)
        if "all" in (raw.get("arms") or ()):
            config = dataclasses.replace(config, arms=tuple(arm for arm in config.arms if arm not in LATER_ARMS))
        return config
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a configuration: {' '.join(str(error).split())}") from None


def missing_keys(path: Path) -> dict[str, dict[str, Any]]:
    """What stands for the keys, by section, that the stored configuration of a run lacks; see `from_yaml`."""
    try:
        return _missing_in_run(_with_moved_prompt(_read(path)), path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}  # `from_yaml` says what is wrong


def as_begun(config: Config, missing: Mapping[str, Mapping[str, Any]]) -> Config:
    """`config` for a run that lacks these keys: it goes on as it was begun. Prompts that are given stay, to differ."""
    for section, values in missing.items():
        if section == "data" and config.data.prompts is not None:
            continue
        part = getattr(config, section)
        new = {key: value for key, value in values.items() if hasattr(part, key)}
        config = dataclasses.replace(config, **{section: dataclasses.replace(part, **new)})
    return config


def _with_moved_prompt(raw: Any) -> Any:
    """A stored mapping with the prompt where it is today: `encoder.prompt` was the default of all texts. Null was the
    default prompt of the weights alone, which `data.prompts` cannot say: it is left out."""
    encoder = raw.get("encoder") if isinstance(raw, dict) else None
    if not isinstance(encoder, dict) or "prompt" not in encoder:
        return raw
    prompt, data = encoder["prompt"], raw.get("data")
    raw = {**raw, "encoder": {key: value for key, value in encoder.items() if key != "prompt"}}
    if prompt is None:
        return raw
    prompts = {DEFAULT: prompt} if prompt else {}
    return {**raw, "data": {**(data if isinstance(data, dict) else {}), "prompts": prompts}}


def stored_description(raw: dict[str, Any]) -> dict[str, Any]:
    """The content of dataset.json, with the keys of today."""
    moved = _with_moved_prompt({"encoder": raw["encoder"]})
    return {"prompts": moved.get("data", {}).get("prompts") or {}, **raw, "encoder": moved["encoder"]}


def stored_encoder(raw: Any) -> Any:
    """The section `encoder` as a run has stored it, with the keys of today."""
    return {**raw, **_missing({"encoder": raw}).get("encoder", {})} if isinstance(raw, dict) else raw


def _read(path: Path) -> Any:
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ValueError(f"it has {size:,} bytes, a configuration at most {MAX_CONFIG_BYTES:,}")
    return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader


def _missing(raw: Any) -> dict[str, dict[str, Any]]:
    """The entries of `ADDED_KEYS` that a stored mapping has no value for, by section."""
    missing: dict[str, dict[str, Any]] = {}
    for section, key, value, concerns in ADDED_KEYS if isinstance(raw, dict) else ():
        part = raw.get(section, {})
        if isinstance(part, dict) and key not in part and concerns({"encoder": {}, **raw}):
            missing.setdefault(section, {})[key] = value
    return missing


def _missing_in_run(raw: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Those of the configuration of a run in `path`. One without `data.prompts` is of before there were prompts by use:
    what stood before its texts, if anything, is in the dataset.json beside it, unless nothing was trained yet."""
    missing = _missing(raw)
    data = raw.get("data", {}) if isinstance(raw, dict) else None
    if isinstance(data, dict) and "prompts" not in data:
        try:
            content = json.loads((path.parent / "dataset.json").read_text(encoding="utf-8"))
            missing["data"] = {"prompts": stored_description(content)["prompts"]}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass  # `runs.read_dataset` says what is wrong
    return missing


def differences(old: Config, new: Config) -> list[str]:
    """`key=old (now new)` for every key in which two configurations differ, but for those of `NOT_COMPARED`.

    With a frozen encoder texts in memory are in other batches than texts that stay on disk. More seeds are no
    difference: a seed does not depend on how many there are."""
    ignored = {*NOT_COMPARED, *new.open_keys}  # what the new one leaves open is as it was in the old one
    if new.seeds > old.seeds:
        ignored.add("seeds")
    if getattr(old.encoder, "frozen", False):
        ignored.discard("data.streaming")

    def walk(a: Any, b: Any, key: str) -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return [line for name in {**a, **b} for line in walk(a.get(name), b.get(name), f"{key}.{name}".lstrip("."))]
        return [] if a == b or {key, key.split(".")[0]} & ignored else [f"{key}={a} (now {b})"]

    return walk(_plain(dataclasses.asdict(old)), _plain(dataclasses.asdict(new)), "")

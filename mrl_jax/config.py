"""The schema of conf/: dataclasses with types and defaults. Every wrong key or value dies here, in one sentence.

Hydra composes the options and the command line into one mapping; `parse` turns that into a `Config`, checking every
key and value. Nothing downstream sees OmegaConf.
"""

import dataclasses
import math
import re
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mrl_jax import arms, nesting
from mrl_jax.data import SOURCES, DataConfig
from mrl_jax.encoders import CONFIGS as ENCODERS
from mrl_jax.encoders import EncoderConfig
from mrl_jax.errors import UserError, at_least, limit, nearest, one_of, share
from mrl_jax.evaluate import EvaluationConfig
from mrl_jax.evaluate.metrics import METRICS
from mrl_jax.losses import LOSSES
from mrl_jax.processes import DistributedConfig


@dataclass(frozen=True)
class LossConfig:
    """What is minimised; see `mrl_jax.losses`."""

    name: str = "cross_entropy"  # one of `mrl_jax.losses.LOSSES`
    temperature: float = limit(0.05, "0.01 ≤ value ≤ 1", lambda t: 0.01 <= t <= 1)  # τ that divides cosines
    learned_temperature: bool = False  # info_nce: learn τ, starting from temperature
    symmetric: bool = True  # symmetric InfoNCE: also document → query
    distillation: float = at_least(0.0, 0)  # weight of a loss in which the full width's similarities teach the prefixes
    weights: tuple[float, ...] | None = None  # relative importance of each granularity; null: ones
    weighting: Literal["fixed", "uncertainty"] = "fixed"  # as given, or times a factor learned for each granularity
    sampled: int = at_least(2, 1)  # granularities that arm mrl_sampled trains in a step, drawn anew each time
    label_smoothing: float = share(0.0)  # share of the target spread evenly over the classes


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters follow gradients."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = limit(1e-3, "more than 0", lambda rate: rate > 0)  # at the end of warm-up
    schedule: Literal["cosine", "constant"] = "cosine"  # after warm-up; cosine ends at zero
    warmup: float = limit(0.0, "a share, 0 ≤ value ≤ 1", lambda w: 0 <= w <= 1)  # share of the steps with a rising rate
    weight_decay: float = at_least(1e-2, 0)  # decoupled for adamw, added to the gradient for sgd; matrices only
    momentum: float = share(0.9)  # sgd (Nesterov), and the first moment of adamw
    clip_norm: float | None = limit(None, "more than 0, or null", lambda norm: norm > 0)  # maximum gradient norm


@dataclass(frozen=True)
class TrainerConfig:
    """How long training takes, and what it does on the way."""

    epochs: float | None = 10.0  # passes over the training split; ignored when steps is given
    steps: int | None = limit(None, "at least 1, or null to use trainer.epochs", lambda n: n >= 1)  # optimiser steps
    batch_size: int = at_least(256, 1)  # examples per step, over all devices
    accumulate: int = 1  # parts that a batch is split into, their gradients averaged before one update
    population: Literal["auto", "loop", "vmap"] = "auto"  # members in turn, or together (auto: together off the CPU)
    arms_at_once: int | None = limit(None, "at least 1, or null", lambda n: n >= 1)  # per vmap; null: what fits
    precision: Literal["highest", "high", "default"] = (
        "highest"  # matmul precision of the training step, as JAX names it
    )
    evaluations: int = at_least(10, 1)  # times the validation split is scored; the best moment is kept
    log_every: int = at_least(20, 1)  # steps between lines of metrics.jsonl
    checkpoint_seconds: float = at_least(60.0, 0)  # between checkpoints of the training state; 0: at every log line

    def total_steps(self, examples: int) -> int:
        """Optimiser steps of a run on so many training examples: `steps`, or `epochs` passes."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0) * examples / self.batch_size))


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on."""

    data: DataConfig
    encoder: EncoderConfig
    name: str  # of the experiment: the folder below results_dir
    width: int  # D, the embedding width
    nesting_dims: tuple[int, ...]  # ascending, ending at the width
    arms: tuple[str, ...]
    seeds: int  # how many: 0 … seeds − 1
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    results_dir: str = "results"  # the folder of all runs
    run: str | None = None  # folder of this run; null: the date and time (or, with resume=true, the latest run)
    resume: bool | str = False  # continue an interrupted run; auto: if there is one of that name


DEFAULTS = {"loss": LossConfig, "trainer": TrainerConfig, "evaluation": EvaluationConfig}  # sections without groups

# What may differ between a run and the command that resumes it: batches are the same, streamed or not.
NOT_COMPARED = ("resume", "run", "results_dir", "distributed", "data.streaming", "evaluation.print")

DISTRIBUTED: tuple[Literal["none", "slurm", "env", "explicit"], ...] = ("none", "slurm", "env", "explicit")

MAX_CONFIG_BYTES = 1 << 20  # of a stored configuration
MAX_SEEDS = 10_000
MAX_WIDTH = 1 << 20
MAX_NAME_CHARACTERS = 200  # of a folder

CONF = next(path for path in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if path.is_dir())


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
        store.store(group="encoder", name=name, node=dataclasses.asdict(encoder()))
    for source in SOURCES:
        store.store(group="data", name=source, node=dataclasses.asdict(DataConfig(source=source)))
    for name, optimizer in {
        "adamw": OptimizerConfig(),
        "sgd": OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=1e-4),
    }.items():
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
        "optimizer": ["adamw", "sgd"],
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


def parse(raw: Any) -> Config:
    """A checked `Config` from the composed mapping. Raises `UserError`."""
    raw = dict(raw)
    encoder = raw.get("encoder", {})
    if not isinstance(encoder, dict):
        raise UserError(f"encoder={encoder} is not allowed; a section with the name of one of {', '.join(ENCODERS)}")
    encoder_class = ENCODERS[one_of("encoder.name", encoder.get("name"), ENCODERS)]
    raw["encoder"] = build(encoder_class, encoder, "encoder")
    raw["data"] = build(DataConfig, raw.get("data", {}), "data")
    if raw.get("name") is None:
        raw["name"] = (raw["data"].name or raw["data"].source).replace("/", "_")
    raw |= {key: str(raw[key]) for key in ("name", "run") if isinstance(raw.get(key), int)}
    raw["nesting_dims"] = _nesting_dims(raw.get("nesting_dims"), raw.get("width"))
    if isinstance(raw.get("arms"), str):
        raw["arms"] = [raw["arms"]]
    config: Config = build(Config, {**raw, "arms": []} if raw.get("arms") is None else raw, "")
    one_of("loss.name", config.loss.name, LOSSES)
    if raw.get("arms") is None or "all" in config.arms:
        task = LOSSES[config.loss.name].learns_from
        chosen = arms.default_for(task) if raw.get("arms") is None else arms.suited_to(task)
        config = dataclasses.replace(config, arms=chosen)
    _check(config)
    return config


def _nesting_dims(value: Any, width: Any) -> Any:
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= MAX_WIDTH:
        raise UserError(f"width={width} is not allowed; a whole number from 1 to {MAX_WIDTH}")
    if isinstance(value, str):
        one_of("nesting_dims", value, ("log", "uniform", "a list such as [8,16,32]"))
        return nesting.log_spaced(width) if value == "log" else nesting.uniform(width)
    dims = _convert(value, tuple[int, ...], "nesting_dims")
    try:
        return nesting.check_dims(dims, width)
    except ValueError as error:
        raise UserError(f"nesting_dims: {error}") from None


def _check(config: Config) -> None:
    """Values that are of the right type and still wrong."""
    arms.posthoc(config.arms)
    if not config.arms:
        raise UserError(f"arms is empty; allowed: {', '.join(arms.NAMES)}, all")
    trainer, width = config.trainer, config.width
    for key, value, allowed, good in (
        ("seeds", config.seeds, f"1 to {MAX_SEEDS}", 1 <= config.seeds <= MAX_SEEDS),
        (
            "trainer.accumulate",
            trainer.accumulate,
            f"a divisor of trainer.batch_size={trainer.batch_size}",
            trainer.accumulate >= 1 and trainer.batch_size % trainer.accumulate == 0,
        ),
        (
            "trainer.epochs",
            trainer.epochs,
            "more than 0 and at most 1e6 (or give trainer.steps)",
            trainer.steps is not None or (trainer.epochs is not None and 0 < trainer.epochs <= 1e6),
        ),
        (
            "evaluation.dims",
            config.evaluation.dims,
            f"dims from 1 to width={width}, or null",
            all(1 <= m <= width for m in config.evaluation.dims or ()),
        ),
    ):
        if not good:
            raise UserError(f"{key}={value} is not allowed; {allowed}")
    for name in config.evaluation.print or ():
        one_of("evaluation.print", name, (*METRICS, "all"))
    _check_loss(config)
    _check_distributed(config.distributed)
    weights = config.loss.weights
    if weights is not None:
        if len(weights) != len(config.nesting_dims):
            raise UserError(
                f"loss.weights={list(weights)} has {len(weights)} entries; nesting_dims={list(config.nesting_dims)} "
                f"needs {len(config.nesting_dims)}"
            )
        if min(weights) < 0 or max(weights) == 0:
            raise UserError(f"loss.weights={list(weights)} is not allowed; none below 0 and at least one above")
    stages = [arm.trained(config.nesting_dims) for arm in arms.expand(config.arms, config.nesting_dims, weights)]
    if config.evaluation.cascade and max(map(len, stages), default=0) < 2:
        raise UserError(
            f"evaluation.cascade=true needs a nested arm with two granularities or more; arms={list(config.arms)} with "
            f"nesting_dims={list(config.nesting_dims)} has none"
        )
    if isinstance(config.resume, str) and (config.resume != "auto" or config.run is None):
        needed = "true, false or auto" if config.resume != "auto" else "it needs run=…, the name of the run"
        raise UserError(f"resume={config.resume} is not allowed; {needed}")
    for key, path in (("name", config.name), ("run", config.run)):
        if path is not None and (
            path in ("", ".", "..")
            or "/" in path
            or "\\" in path
            or not path.isprintable()
            or len(path) > MAX_NAME_CHARACTERS
        ):
            raise UserError(f"{key}={path!r} is not allowed; the name of one folder, without slashes")


def _check_loss(config: Config) -> None:
    """Refuse arms and options that do not go with the chosen loss."""
    name, loss = config.loss.name, LOSSES[config.loss.name]
    problem = f"is not allowed with loss.name={name}; it needs"
    for arm in config.arms:
        tasks = arms.ARMS[arm].tasks
        if loss.learns_from not in tasks:
            fitting = [other for other, entry in LOSSES.items() if entry.learns_from in tasks]
            raise UserError(f"arms={arm} {problem} loss.name={' or '.join(fitting)}")
    for key in dict.fromkeys(key for entry in LOSSES.values() for key in entry.options):
        section, _, option = key.partition(".")
        value, usual = (getattr(part, option) for part in (getattr(config, section), DEFAULTS[section]()))
        if key not in loss.options and value != usual:
            raise UserError(f"{key}={_word(value)} {problem} {_word(usual)}")


def _word(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _check_distributed(config: DistributedConfig) -> None:
    """Keys that go with distributed=explicit, and only with it."""
    explicit = {"coordinator": config.coordinator, "processes": config.processes, "process": config.process}
    for key, value in explicit.items():
        if config.mode != "explicit" and value is not None:
            raise UserError(
                f"distributed.{key}={value} is not allowed with distributed={config.mode}; it needs explicit"
            )
        if config.mode == "explicit" and value is None:
            raise UserError(f"distributed.{key} is missing; distributed=explicit needs coordinator, processes, process")
    if config.coordinator is not None:
        host, _, port = config.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"distributed.coordinator={config.coordinator} is not allowed; host:port")
    if config.processes is not None and config.process is not None:
        if config.processes < 1:
            raise UserError(f"distributed.processes={config.processes} is not allowed; at least 1")
        if not 0 <= config.process < config.processes:
            raise UserError(
                f"distributed.process={config.process} is not allowed; 0 to {config.processes - 1}, "
                f"as distributed.processes={config.processes}"
            )


def build(cls: type, raw: Any, key: str) -> Any:
    """The dataclass `cls` from a mapping, each value checked against its field's type; `key` names the section."""
    if dataclasses.is_dataclass(raw) and isinstance(raw, cls):
        return raw
    if not isinstance(raw, dict):
        raise UserError(f"{key}={raw} is not allowed; a section with keys {', '.join(get_type_hints(cls))}")
    hints = get_type_hints(cls)
    prefix = f"{key}." if key else ""
    for name in raw:
        if name not in hints:
            raise UserError(f"unknown key {prefix}{name}{nearest(name, hints)}; allowed: {', '.join(hints)}")
    for item in dataclasses.fields(cls):
        if item.name not in raw and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise UserError(f"{prefix}{item.name} is missing; it needs a value")
    values = {name: _convert(value, hints[name], prefix + name) for name, value in raw.items()}
    for item in dataclasses.fields(cls):
        value, test = values.get(item.name), item.metadata.get("test")
        if test is not None and value is not None and not test(value):
            raise UserError(f"{prefix}{item.name}={value} is not allowed; {item.metadata['allowed']}")
    return cls(**values)


def _convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint`, or a `UserError` that names the key. Whole numbers pass as floats, never the reverse."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        classes = [a for a in args if a is not type(None)]
        if any(dataclasses.is_dataclass(a) for a in classes):
            return value
        for option in classes[:-1]:
            try:
                return _convert(value, option, key)
            except UserError:
                continue
        return _convert(value, classes[-1], key)
    if origin is Literal:
        return one_of(key, value, args)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{key}={value} is not allowed; a list such as [{_describe(args[0])}, …]")
        return tuple(_convert(item, args[0], f"{key}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return build(hint, value, key)  # type: ignore[arg-type]
    if hint in (int, float) and type(value) is int and abs(value) >= 2**53:
        raise UserError(f"{key}={value} is not allowed; an integer below 2**53 in magnitude")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{key}={value} is not allowed; {_describe(hint)}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{key}={value} is not allowed; a finite number")
    return value


def _describe(hint: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint, str(hint))


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

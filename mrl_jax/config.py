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
from mrl_jax.encoders import ENCODERS, EncoderConfig
from mrl_jax.errors import UserError, nearest, one_of
from mrl_jax.evaluate import EvaluationConfig
from mrl_jax.evaluate.metrics import METRICS
from mrl_jax.processes import DistributedConfig


@dataclass(frozen=True)
class LossConfig:
    name: Literal["cross_entropy", "info_nce", "cosent", "cosine"] = "cross_entropy"  # of classes; pairs; scored pairs
    temperature: float = 0.05  # τ by which cosines are divided (info_nce, cosent)
    learned_temperature: bool = False  # info_nce: learn τ, starting from temperature
    symmetric: bool = True  # info_nce: documents look for their queries too
    distillation: float = 0.0  # weight of a loss by which the whole embedding's similarities teach its prefixes
    weights: tuple[float, ...] | None = None  # relative importance of each granularity; null: ones
    weighting: Literal["fixed", "uncertainty"] = "fixed"  # as given, or times a factor learned for each granularity
    sampled: int = 2  # granularities that arm mrl_sampled trains in a step, drawn anew each time
    label_smoothing: float = 0.0  # share of the target spread evenly over the classes, in [0, 1)


@dataclass(frozen=True)
class OptimizerConfig:
    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3  # at the end of warm-up
    schedule: Literal["cosine", "constant"] = "cosine"  # after warm-up; cosine ends at zero
    warmup: float = 0.0  # share of the steps over which the learning rate rises to its value
    weight_decay: float = 1e-2  # decoupled for adamw, added to the gradient for sgd; matrices only
    momentum: float = 0.9  # sgd (Nesterov), and the first moment of adamw
    clip_norm: float | None = None  # largest global norm of a gradient


@dataclass(frozen=True)
class TrainerConfig:
    epochs: float | None = 10.0  # passes over the training split; ignored when steps is given
    steps: int | None = None  # optimiser steps
    batch_size: int = 256  # examples a step, over all devices
    accumulate: int = 1  # parts a batch is split into, their gradients averaged before one update
    population: Literal["auto", "loop", "vmap"] = "auto"  # members in turn, or together (auto: together off the CPU)
    arms_at_once: int | None = None  # members trained together by vmap; null: as many as the device's memory takes
    precision: Literal["highest", "high", "default"] = "highest"  # of float32 products in training, as JAX names it
    evaluations: int = 10  # times the validation split is scored during training; the best moment is kept
    log_every: int = 20  # steps between lines of metrics.jsonl
    checkpoint_seconds: float = 60.0  # time between checkpoints of the training state; 0: at every log line


@dataclass(frozen=True)
class Config:
    data: DataConfig
    encoder: EncoderConfig
    name: str  # of the experiment: the folder below results_dir
    width: int  # D, the embedding width
    nesting_dims: tuple[int, ...]  # ascending, ending at the width
    arms: tuple[str, ...]
    seeds: int  # how many: 0 … seeds-1
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    results_dir: str = "results"
    run: str | None = None  # folder of this run; null: the date and time (or, with resume=true, the latest run)
    resume: bool | str = False  # continue an interrupted run; auto: if there is one of that name

    @property
    def contrastive(self) -> bool:
        """Whether pairs are trained on, and not classes."""
        return self.loss.name != "cross_entropy"


# What may differ between a run and the command that resumes it: batches are the same, streamed or not.
NOT_COMPARED = ("resume", "run", "results_dir", "distributed", "data.streaming", "evaluation.print")

DISTRIBUTED: tuple[Literal["none", "slurm", "env", "explicit"], ...] = ("none", "slurm", "env", "explicit")

MOST_BYTES = 1 << 20  # of a stored configuration
MOST_SEEDS = 10_000
MOST_WIDTH = 1 << 20
LONGEST_NAME = 200  # of a folder

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
    sections = {"loss": LossConfig, "trainer": TrainerConfig, "evaluation": EvaluationConfig}
    store.store(name="defaults", node=base | {key: dataclasses.asdict(cls()) for key, cls in sections.items()})
    for name, encoder in ENCODERS.items():
        store.store(group="encoder", name=name, node=dataclasses.asdict(encoder.config()))
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
    encoder_class = ENCODERS[one_of("encoder.name", encoder.get("name"), ENCODERS)].config
    raw["encoder"] = build(encoder_class, encoder, "encoder")
    raw["data"] = build(DataConfig, raw.get("data", {}), "data")
    if raw.get("name") is None:
        raw["name"] = (raw["data"].name or raw["data"].source).replace("/", "_")
    raw |= {key: str(raw[key]) for key in ("name", "run") if isinstance(raw.get(key), int)}
    raw["nesting_dims"] = _nesting_dims(raw.get("nesting_dims"), raw.get("width"))
    if isinstance(raw.get("arms"), str):
        raw["arms"] = [raw["arms"]]
    if raw.get("arms") is None:
        loss = raw.get("loss")
        of_classes = not isinstance(loss, dict) or loss.get("name", "cross_entropy") == "cross_entropy"
        raw["arms"] = ["mrl_e" if of_classes else "mrl"]
    config: Config = build(Config, raw, "")
    if config.contrastive and "all" in config.arms:
        config = dataclasses.replace(config, arms=arms.for_pairs())
    _check(config)
    return config


def _nesting_dims(value: Any, width: Any) -> Any:
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= MOST_WIDTH:
        raise UserError(f"width={width} is not allowed; a whole number from 1 to {MOST_WIDTH}")
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
    for key, value, allowed, good in (
        ("seeds", config.seeds, f"1 to {MOST_SEEDS}", 1 <= config.seeds <= MOST_SEEDS),
        ("loss.sampled", config.loss.sampled, "at least 1", config.loss.sampled >= 1),
        ("loss.temperature", config.loss.temperature, "0.01 ≤ value ≤ 1", 0.01 <= config.loss.temperature <= 1),
        ("loss.distillation", config.loss.distillation, "at least 0", config.loss.distillation >= 0),
        (
            "trainer.arms_at_once",
            config.trainer.arms_at_once,
            "at least 1, or null",
            config.trainer.arms_at_once is None or config.trainer.arms_at_once >= 1,
        ),
        ("loss.label_smoothing", config.loss.label_smoothing, "0 ≤ value < 1", 0 <= config.loss.label_smoothing < 1),
        (
            "optimizer.learning_rate",
            config.optimizer.learning_rate,
            "more than 0",
            config.optimizer.learning_rate > 0,
        ),
        ("optimizer.warmup", config.optimizer.warmup, "a share, 0 ≤ value ≤ 1", 0 <= config.optimizer.warmup <= 1),
        ("optimizer.weight_decay", config.optimizer.weight_decay, "at least 0", config.optimizer.weight_decay >= 0),
        ("optimizer.momentum", config.optimizer.momentum, "0 ≤ value < 1", 0 <= config.optimizer.momentum < 1),
        (
            "optimizer.clip_norm",
            config.optimizer.clip_norm,
            "more than 0, or null",
            config.optimizer.clip_norm is None or config.optimizer.clip_norm > 0,
        ),
        ("trainer.batch_size", config.trainer.batch_size, "at least 1", config.trainer.batch_size >= 1),
        (
            "trainer.accumulate",
            config.trainer.accumulate,
            f"a divisor of trainer.batch_size={config.trainer.batch_size}",
            config.trainer.accumulate >= 1 and config.trainer.batch_size % config.trainer.accumulate == 0,
        ),
        (
            "trainer.steps",
            config.trainer.steps,
            "at least 1, or null to use trainer.epochs",
            config.trainer.steps is None or config.trainer.steps >= 1,
        ),
        (
            "trainer.epochs",
            config.trainer.epochs,
            "more than 0 and at most 1e6 (or give trainer.steps)",
            config.trainer.steps is not None
            or (config.trainer.epochs is not None and 0 < config.trainer.epochs <= 1e6),
        ),
        ("trainer.evaluations", config.trainer.evaluations, "at least 1", config.trainer.evaluations >= 1),
        ("trainer.log_every", config.trainer.log_every, "at least 1", config.trainer.log_every >= 1),
        (
            "trainer.checkpoint_seconds",
            config.trainer.checkpoint_seconds,
            "at least 0",
            config.trainer.checkpoint_seconds >= 0,
        ),
        (
            "evaluation.dims",
            config.evaluation.dims,
            f"dims from 1 to width={config.width}, or null",
            all(1 <= m <= config.width for m in config.evaluation.dims or ()),
        ),
        ("evaluation.batch_size", config.evaluation.batch_size, "at least 1", config.evaluation.batch_size >= 1),
        ("evaluation.epsilon", config.evaluation.epsilon, "between 0 and 1", 0 < config.evaluation.epsilon < 1),
        ("evaluation.delta", config.evaluation.delta, "between 0 and 1", 0 < config.evaluation.delta < 1),
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
            path in ("", ".", "..") or "/" in path or "\\" in path or not path.isprintable() or len(path) > LONGEST_NAME
        ):
            raise UserError(f"{key}={path!r} is not allowed; the name of one folder, without slashes")


def _check_loss(config: Config) -> None:
    """Options that belong to another loss than the one that was chosen."""
    loss, said = config.loss, f"with loss.name={config.loss.name}"
    if not config.contrastive:
        absent = arms.untuned(config.arms)
        wrong = [("arms", absent[0], "loss.name=info_nce, cosent or cosine")] if absent else []
        wrong += [("loss.distillation", str(loss.distillation), "0")] if loss.distillation else []
    else:
        wrong = [("arms", "mrl_e", "classes, and loss.name=cross_entropy")] if "mrl_e" in config.arms else []
        wrong += [("loss.label_smoothing", str(loss.label_smoothing), "0")] if loss.label_smoothing else []
        wrong += [("loss.weighting", loss.weighting, "fixed")] if loss.weighting != "fixed" else []
        wrong += [("evaluation.cascade", "true", "false")] if config.evaluation.cascade else []
    if loss.learned_temperature and loss.name != "info_nce":
        wrong.append(("loss.learned_temperature", "true", "false"))
    for key, value, needed in wrong:
        raise UserError(f"{key}={value} is not allowed {said}; it needs {needed}")


def _check_distributed(config: DistributedConfig) -> None:
    """Keys that go with distributed=explicit, and only with it."""
    for key, seconds in (("connect", config.connect_seconds), ("heartbeat", config.heartbeat_seconds)):
        if seconds < 1:
            raise UserError(f"distributed.{key}_seconds={seconds} is not allowed; at least 1")
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
    return cls(**{name: _convert(value, hints[name], prefix + name) for name, value in raw.items()})


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
        raise UserError(f"{key}={value} is not allowed; a number of a usual size")
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
        if size > MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, a configuration at most {MOST_BYTES:,}")
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

"""A checked `Config` from the mapping that Hydra or a run's config.yaml gives. Every wrong key or value dies here."""

import contextlib
import dataclasses
from typing import Any

from mrl_jax import arms, nesting
from mrl_jax.config import recipes, sources, space
from mrl_jax.config.build import as_word, build, build_encoder, convert
from mrl_jax.config.schema import DEFAULTS, Config
from mrl_jax.data import DataConfig
from mrl_jax.encoders import slices
from mrl_jax.encoders.transformer_settings import TransformerConfig
from mrl_jax.evaluate.corrupt import CORRUPTIONS
from mrl_jax.evaluate.metrics import METRICS, find
from mrl_jax.losses import LOSSES
from mrl_jax.system.errors import UserError, one_of, within
from mrl_jax.system.processes import DistributedConfig

MAX_SEEDS = 10_000
MAX_WIDTH = 1 << 20
MAX_NAME_CHARACTERS = 200  # of a folder


def parse(raw: Any, is_stored: bool = False) -> Config:
    """A checked `Config` from the composed mapping, or from that of a run: what was allowed once can still be read.
    Raises `UserError`."""
    raw = dict(raw)
    raw, open_keys = recipes.take_open_keys(raw)
    raw["encoder"] = build_encoder(raw.get("encoder", {}))
    raw["data"] = build(DataConfig, sources.with_inherited(raw.get("data", {})), "data")
    if raw.get("name") is None:
        raw["name"] = (raw["data"].name or raw["data"].source).replace("/", "_")
    raw |= {key: str(raw[key]) for key in ("name", "run") if isinstance(raw.get(key), int)}
    raw["nesting_dims"] = _nesting_dims(raw.get("nesting_dims"), raw.get("width"))
    if isinstance(raw.get("arms"), str):
        raw["arms"] = [raw["arms"]]
    recipe = raw.pop("recipe", "none")
    config: Config = build(Config, {**raw, "arms": []} if raw.get("arms") is None else raw, "")
    one_of("loss.name", config.loss.name, LOSSES)
    config = _with_mask_token(config)
    sources.check(config)
    config = recipes.name_recipe(config, recipe, open_keys)
    if raw.get("arms") is None or "all" in config.arms:
        tasks = sources.learnt_from(config)
        chosen = arms.default_for(*tasks) if raw.get("arms") is None else arms.suited_to(*tasks)
        config = dataclasses.replace(config, arms=chosen)
    _check(config)
    if not is_stored:
        _check_new(config)
    return config


def _with_mask_token(config: Config) -> Config:
    """The configuration; a vocabulary that is learnt to predict hidden tokens has a token that hides them."""
    encoder = config.encoder
    if LOSSES[config.loss.name].learns_from != "texts" or not isinstance(encoder, TransformerConfig) or encoder.weights:
        return config
    return dataclasses.replace(config, encoder=dataclasses.replace(encoder, mask_token=True))


def _nesting_dims(value: Any, width: Any) -> Any:
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= MAX_WIDTH:
        raise UserError(f"width={width} is not allowed; a whole number from 1 to {MAX_WIDTH}")
    if isinstance(value, str):
        one_of("nesting_dims", value, ("log", "uniform", "a list such as [8,16,32]"))
        return nesting.log_spaced(width) if value == "log" else nesting.uniform(width)
    dims = convert(value, tuple[int, ...], "nesting_dims")
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
        if find(name) is None:
            one_of("evaluation.print", name, (*METRICS, "all"))
    for name in config.evaluation.corruption or ():
        one_of("evaluation.corruption", name, CORRUPTIONS)
    for name, part in (sources.parts(config) or {"": config}).items():
        with within(f"data.sources.{name}") if name else contextlib.nullcontext():
            _check_loss(part)
    if config.optimizer.name == "sgd" and (value := config.optimizer.adaptivity) != 1:
        raise UserError(f"optimizer.adaptivity={as_word(value)} is not allowed with optimizer.name=sgd; it is of adamw")
    space.check(config)
    own = [name for name in config.arms if arms.ARMS[name].settings]
    if own and config.data.source == "mixture":
        raise UserError(f"arms={own[0]} is not for data=mixture, whose sources have losses of their own")
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
    stages = [arm.trained(config.nesting_dims) for arm in config.population]
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
    arms.classical(config.evaluation.baseline, loss.learns_from)
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
            raise UserError(f"{key}={as_word(value)} {problem} {as_word(usual)}")
    for key, other in (("teacher_weight", "teacher"), ("supervised", "teacher"), ("guide_margin", "guide")):
        value = getattr(config.loss, key)
        if getattr(config.loss, other) is None and value != getattr(DEFAULTS["loss"](), key):
            raise UserError(f"loss.{key}={as_word(value)} is not allowed without a {other}; it needs loss.{other}=…")
    for given in (config.loss.guide and "loss.guide", space.giver(config, "loss.binary")):
        if given and not config.loss.supervised:
            raise UserError(
                f"{given} is not allowed with loss.supervised=false, which leaves out the loss that it changes"
            )
    is_shortlist = space.giver(config, "loss.shortlist") is not None
    for key in () if is_shortlist else ("shortlist_k", "shortlist_temperature"):
        if (value := getattr(config.loss, key)) != getattr(DEFAULTS["loss"](), key):
            raise UserError(
                f"loss.{key}={as_word(value)} is not allowed with loss.shortlist=0; it needs a weight above 0"
            )


def _check_new(config: Config) -> None:
    """What earlier versions allowed, and a new run may not ask for."""
    _check_images(config)
    _check_parts(config)
    for name, part in (sources.parts(config) or {"": config}).items():
        if not part.loss.symmetric and part.loss.name != "info_nce":
            raise UserError(f"loss.symmetric=false is not allowed with loss.name={part.loss.name}; it is of info_nce")
        weights = part.loss.weights
        for key in ("loss.distillation", "loss.shortlist") if weights and weights[-1] == 0 else ():
            with within(f"data.sources.{name}") if name else contextlib.nullcontext():
                if given := space.giver(part, key):
                    raise UserError(
                        f"{given} is not allowed with loss.weights={list(weights or ())}: the full width teaches, and "
                        "has no weight"
                    )


def _check_parts(config: Config) -> None:
    """Refuse nesting layers and hidden widths of what cannot learn them; those that the encoder does not have, where it
    is at hand."""
    given = {key: sizes for key in ("nesting_layers", "nesting_hidden") if (sizes := getattr(config, key)) is not None}
    if "mrl_dims" in config.arms and not given:
        raise UserError("arms=mrl_dims needs nesting_layers=[…] or nesting_hidden=[…]; without them it is mrl")
    for key, sizes in given.items():
        problem = f"{key}={list(sizes)} is not allowed with"
        for name, part in (sources.parts(config) or {"": config}).items():
            if name or LOSSES[part.loss.name].learns_from == "texts":
                able = [name for name, entry in LOSSES.items() if entry.learns_from != "texts"]
                other = f"data={config.data.source}" if name else f"loss.name={part.loss.name}"
                raise UserError(f"{problem} {other}; it needs one source and loss.name={' or '.join(able)}")
        if config.loss.weighting != "fixed":
            raise UserError(f"{problem} loss.weighting={config.loss.weighting}; fixed")
        if getattr(config.encoder, "frozen", False):
            raise UserError(f"{problem} encoder.frozen=true: its layers would not learn; false")
    if getattr(config.encoder, "weights", None) is None:  # else `TrainStep.check` reads their files
        slices.check(config.encoder, config.nesting_layers, config.nesting_hidden)


def _check_images(config: Config) -> None:
    """Keys of images that would change what training sees and not what the model reads afterwards, or have no effect
    in some arms."""
    given = next((key for key in ("mixup", "cutmix") if getattr(config.encoder, key, 0)), None)
    if given and (giver := space.giver(config, "loss.shortlist")):
        raise UserError(f"encoder.{given} is not allowed with {giver}: mixtures of images have no neighbours; 0")
    encoder = getattr(config.encoder, "image", config.encoder)
    weights, size = getattr(encoder, "weights", None), config.data.image_size
    if weights and size is not None and config.data.source in ("images", "image_text"):
        raise UserError(
            f"data.image_size={size} is not allowed with pretrained weights, which say how images are prepared; leave "
            "it out, and give encoder.image_size where they are to see another size"
        )


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

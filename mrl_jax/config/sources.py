"""The sources of a mixture as configurations of their own: each has its data and its loss, all else is shared."""

import dataclasses
import re
from typing import Any

from mrl_jax.config.build import build
from mrl_jax.config.schema import Config, LossConfig
from mrl_jax.data import GENERAL_KEYS, SOURCES, DataConfig
from mrl_jax.losses import LOSSES
from mrl_jax.system.errors import UserError, one_of

MIXTURE = "mixture"
INHERITED = tuple(
    key for key in GENERAL_KEYS if key not in ("source", "hold_out")
)  # keys of `data` that a source without them has too
OF_ARMS = ("weights", "sampled")  # keys of `loss` that make an arm, which is the same for all sources
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def with_inherited(raw: Any) -> Any:
    """The section `data` as given, each of its sources with the keys that it has from the section itself."""
    sources = raw.get("sources") if isinstance(raw, dict) else None
    if not isinstance(sources, dict) or raw.get("source") != MIXTURE:
        return raw
    inherited = {key: raw[key] for key in INHERITED if key in raw}
    return {**raw, "sources": {name: inherited | of if isinstance(of, dict) else of for name, of in sources.items()}}


def parts(config: Config) -> dict[str, Config]:
    """By name, the configuration of each source of a mixture; none of a run on one source.

    They keep `data.sources`, which says what else the encoder was trained on. Raises `UserError` for a loss that there
    is not.
    """
    if config.data.source != MIXTURE:
        return {}
    found = {}
    for name, source in (config.data.sources or {}).items():
        section = f"data.sources.{name}.loss"
        for key in OF_ARMS:
            if key in (source.loss or {}):
                raise UserError(f"{section}.{key} is not allowed: all sources share it; set loss.{key}")
        loss = build(LossConfig, dataclasses.asdict(config.loss) | dict(source.loss or {}), section)
        one_of(f"{section}.name", loss.name, LOSSES)
        own = {field.name: getattr(source, field.name) for field in dataclasses.fields(DataConfig)}
        mixing = {key: getattr(config.data, key) for key in SOURCES[MIXTURE].keys}
        found[name] = dataclasses.replace(
            config, name=f"{config.name}.{name}", data=DataConfig(**own | mixing), loss=loss
        )
    return found


def learnt_from(config: Config) -> tuple[str, ...]:
    """What the losses of a run learn from: classes, pairs or scored pairs, of each source."""
    return tuple(LOSSES[part.loss.name].learns_from for part in (parts(config) or {"": config}).values())


def check(config: Config) -> None:
    """Raise `UserError` for sources that cannot make a mixture."""
    data, sources = config.data, config.data.sources
    if data.source != MIXTURE:
        return
    if not sources:
        raise UserError(
            "data=mixture needs data.sources; write +data.sources.NAME={source: …, loss: {name: …}} for each"
        )
    for name, source in sources.items():
        key = f"data.sources.{name}"
        if not NAME.fullmatch(name):
            raise UserError(f"{key} is not allowed; a name of letters, digits, _ and -")
        one_of(f"{key}.source", source.source, [other for other in SOURCES if other != MIXTURE])
        if source.streaming:
            raise UserError(f"{key}.streaming=true is not allowed; a mixture is held in memory")
    if (data.mixing == "temperature") != (data.mixing_temperature is not None):
        raise UserError(
            f"data.mixing={data.mixing} with data.mixing_temperature={data.mixing_temperature} is not allowed; "
            "mixing=temperature and a mixing_temperature go together"
        )
    if config.evaluation.baseline not in (None, "none", ("none",)):
        raise UserError(f"evaluation.baseline={config.evaluation.baseline} is not for data=mixture; use none")

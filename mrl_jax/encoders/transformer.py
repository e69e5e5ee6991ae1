"""An encoder of the BERT family: tokens of a text → one vector, from scratch or from pretrained weights.

    x = LN(word[ids] + position + token_type[0])                    each where a family has it, see `families`
    x = block(x) for each layer, see `transformer_block`; LN(x) where norms come before attention and feed-forward
    z = x pooled over the tokens, see `pooling`, then, if asked for, a linear projection to D

`dtype=bfloat16` rounds the operands of every matmul with a kernel to bfloat16 and keeps sums, outputs, parameters and
the rest in float32. The two matmuls of attention stay in float32: they are about a tenth of the work, and XLA on a CPU
gains nothing on them and refuses some of their layouts.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.encoders import huggingface, lora
from mrl_jax.encoders.base import rotate_layers
from mrl_jax.encoders.families import BUCKETS
from mrl_jax.encoders.huggingface import HuggingFaceModel
from mrl_jax.encoders.layers import Linear, drop, embedding
from mrl_jax.encoders.pooling import Pooling, pool, pool_packed
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
from mrl_jax.encoders.transformer_settings import SCRATCH, TransformerConfig, check_width, complete, standalone
from mrl_jax.system.errors import UserError
from mrl_jax.text.tokenizers import Subwords, Texts


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

"""A vision transformer (Dosovitskiy et al., 2021): patches of an image → one vector, from scratch or from weights.

    uint8 image → augmentation (training only) → (x/255 − mean)/std → square patches, each by one linear map
    x = [class token, registers, patches] + positions;  LN(x) in CLIP
    x = block(x) for each layer, see `transformer_block`;  LN(x)
    z = x pooled: the class token, the mean of the patches, or what a learnt query attends to; then a projection to D

From scratch it is the plainer one of Beyer et al., 2022 (arXiv:2205.01580): fixed positions of sines, no class token,
the mean of the patches. `vit_families` says how that of pretrained weights differs, `vit_folder` reads them. A strided
convolution is a matmul of its patches, since they do not overlap. Only the projection mixes coordinates of the pooled
vector; without one FF(m) is the whole backbone with a loss on its first m features.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mrl_jax.encoders import huggingface, image_rules, lora, vit_folder
from mrl_jax.encoders.augmentation import Augmentation, center_crop, in_training
from mrl_jax.encoders.base import EncoderConfig, rotate_layers
from mrl_jax.encoders.block_settings import SIZES, check_agreement, check_blocks
from mrl_jax.encoders.image_rules import ImageRule
from mrl_jax.encoders.layers import Linear, drop, initial
from mrl_jax.encoders.mixing import mixed
from mrl_jax.encoders.positions import sincos
from mrl_jax.encoders.randaugment import MAX_LEVEL
from mrl_jax.encoders.transformer_block import FUNCTIONS as BLOCK_FUNCTIONS
from mrl_jax.encoders.transformer_block import Block, apply_and_forget, norm_of
from mrl_jax.encoders.vit_families import FUNCTIONS, VISION, Architecture, Function, Position, VisionName, VitPooling
from mrl_jax.system.errors import UserError, at_least, limited, one_of

# Those of ViT-S/16, where nothing else is given.
SCRATCH: dict[str, Any] = {"layers": 12, "hidden": 384, "heads": 6, "intermediate": 1536, "patch": 16, "registers": 0}
# A setting that is given must agree with the weights.
OF_WEIGHTS = (*SIZES, "patch", "registers", "layer_scale", "class_token", "family", "function", "position")


@dataclass(frozen=True)
class ViTConfig(EncoderConfig):
    """Settings; with `weights`, those that are null come from the weights, and sizes that are given must agree."""

    name: str = "vit"
    weights: str | None = None  # null: from scratch; a folder in Hugging Face format; or a hub name
    family: VisionName | None = None  # which parts it has, as in that architecture; from scratch vit
    image_size: int | None = limited(
        None, "at least 1, or null", lambda n: n >= 1
    )  # side of the square read; null: all
    patch: int | None = None  # side of a patch in pixels, a divisor of the image's sides; from scratch 16
    layers: int | None = None  # blocks; from scratch 12
    hidden: int | None = None  # width of the residual stream; from scratch 384
    heads: int | None = None  # attention heads, a divisor of hidden; from scratch 6
    intermediate: int | None = None  # width inside a feed-forward block; from scratch 1536
    pooling: VitPooling | None = None  # cls, mean of the patches, or attention of a learnt query; from scratch mean
    position: Position | None = None  # a learned table, or sincos; from scratch sincos
    class_token: bool | None = None  # whether a token stands before the patches; from scratch where pooling=cls
    registers: int | None = None  # further tokens without a place; from scratch 0
    layer_scale: float | None = None  # initial factors of what layers add; 0: there are none, as from scratch
    function: Function | None = None  # between the matrices of feed-forward; from scratch gelu
    layer_norm_eps: float | None = None  # of every norm; from scratch as usual in a family
    projection: bool = False  # a last linear map hidden → width, without which both are equal; weights may have one
    mean: tuple[float, ...] | None = None  # of the pixels in [0, 1]: one number, or one per channel; from scratch 0.5
    std: tuple[float, ...] | None = None  # standard deviation of the pixels, likewise; from scratch 0.5
    augment: Augmentation = "none"  # in training; flip_crop: mirror and shift by ≤ 4 pixels; resized_crop: ImageNet's
    randaugment: int = limited(0, "0 to 10", lambda n: 0 <= n <= MAX_LEVEL)  # in training: level; 0: none
    mixup: float = at_least(0.0, 0)  # in training: α of mixtures of two images and their labels; 0: none
    cutmix: float = at_least(0.0, 0)  # in training: α of squares of other images, and their labels; 0: none
    dropout: float = 0.0  # of the embeddings and of the output of attention and feed-forward, in [0, 1)
    attention_dropout: float = 0.0  # of the attention weights, in [0, 1)
    dtype: Literal["float32", "bfloat16"] = "float32"  # operands of matmuls
    attention: Literal["plain", "fused"] = "plain"  # fused: one kernel of JAX's, on GPUs; needs attention_dropout=0
    lora_rank: int = at_least(0, 0)  # above 0, only products of that rank, added to each matrix, and a projection learn
    frozen: bool = False  # the weights stay as they are, and only the projection learns
    remat: bool = False  # compute layers once more for their gradient: slower, less memory


def complete(config: ViTConfig, shape: tuple[int, ...]) -> tuple[ViTConfig, Architecture]:
    """`config` without nulls, and the architecture it asks for of images of that shape, [h, w, c]. Raises `UserError`
    for the first setting that cannot work."""
    given = {key: value for key in OF_WEIGHTS if (value := getattr(config, key)) is not None}
    if config.weights is None:
        architecture = _from_scratch(config, given, shape)
        mean, std = config.mean or (0.5,), config.std or (0.5,)
    else:
        described = vit_folder.describe(huggingface.resolve(config.weights), config.image_size)
        architecture = replace(described.architecture, pooling=config.pooling or described.architecture.pooling)
        if described.projected is not None:
            config = replace(config, projection=True)
        check_agreement(config, given, architecture)
        mean, std = config.mean or described.mean, config.std or described.std
    found = {key: getattr(architecture, key) for key in (*OF_WEIGHTS, "pooling")}
    config = replace(config, **found, mean=tuple(mean), std=tuple(std))  # a list would not hash under jit
    check(config, architecture)
    return config, architecture


def _from_scratch(config: ViTConfig, given: dict[str, Any], shape: tuple[int, ...]) -> Architecture:
    family = VISION[one_of("encoder.family", config.family or "vit", VISION)]
    height, width, channels = shape
    if config.image_size is not None:
        if config.image_size > min(height, width):
            raise UserError(
                f"encoder.image_size={config.image_size} is not allowed; at most the image's shorter side, "
                f"{min(height, width)}"
            )
        height = width = config.image_size
    pooling = one_of("encoder.pooling", config.pooling or "mean", get_args(VitPooling))
    parts: dict[str, Any] = {
        **SCRATCH, "family": "vit", "function": family.gelu, "layer_norm_eps": family.norm_epsilon, "layer_scale": 0.0,
        "class_token": pooling == "cls", "position": "sincos", **given,
    }  # fmt: skip
    patch = parts["patch"]
    if patch < 1 or height % patch or width % patch:
        raise UserError(
            f"encoder.patch={patch} does not divide images of {height} × {width} pixels; set encoder.patch, or "
            "encoder.image_size to read a square of them"
        )
    return Architecture(
        **{**parts, "layer_scale": float(parts["layer_scale"])},
        grid=(height // patch, width // patch),
        channels=channels,
        pooling=pooling,  # type: ignore[arg-type]
    )


def check(config: ViTConfig, a: Architecture) -> None:
    """Raise `UserError` for a setting of a completed config that is out of range."""
    check_blocks(config)
    for key in ("registers", "layer_scale"):
        if not getattr(config, key) >= 0:
            raise UserError(f"encoder.{key}={getattr(config, key)} is not allowed; at least 0")
    if a.hidden % a.heads:
        raise UserError(f"encoder.heads={a.heads} is not allowed; a divisor of encoder.hidden={a.hidden}")
    one_of("encoder.function", config.function, FUNCTIONS)
    one_of("encoder.position", config.position, get_args(Position))
    one_of("encoder.pooling", config.pooling, get_args(VitPooling))
    one_of("encoder.augment", config.augment, get_args(Augmentation))
    if a.position == "sincos" and a.hidden % 4:
        raise UserError(f"encoder.hidden={a.hidden} is not allowed with encoder.position=sincos; a multiple of 4")
    if a.pooling == "cls" and not a.class_token:
        raise UserError("encoder.pooling=cls needs a class token, which this one does not have; use mean")
    if config.weights and a.pooling == "attention" and not a.described.attention_pooling:
        raise UserError(f"encoder.pooling=attention is not allowed; encoder.weights={config.weights} have no such part")
    assert config.mean is not None
    assert config.std is not None
    for key, values in (("mean", config.mean), ("std", config.std)):
        if len(values) not in (1, a.channels):
            raise UserError(
                f"encoder.{key}={list(values)} must be one number, or one for each of {a.channels} channels"
            )
    if min(config.std) <= 0:
        raise UserError(f"encoder.std={list(config.std)} must be greater than 0")


def check_width(config: ViTConfig, width: int) -> None:
    """See `lora.check_width`."""
    lora.check_width(
        config,
        width,
        lambda: vit_folder.describe(huggingface.resolve(str(config.weights)), config.image_size).projected,
    )


def digest(config: ViTConfig) -> str | None:
    """SHA-256 of the file of the pretrained weights."""
    return None if config.weights is None else huggingface.weights_digest(huggingface.resolve(config.weights))


def standalone(config: ViTConfig, vocabulary: int) -> tuple[ViTConfig, int]:
    """The same encoder without its pretrained weights: a trained one is rebuilt from these where they are not
    available. From scratch it is as given: the shape of the images is in the run."""
    if config.weights is None:
        return config, vocabulary
    described = vit_folder.describe(huggingface.resolve(config.weights), config.image_size)
    config, _ = complete(config, described.rule.shape)
    height, width = described.rule.crop
    return replace(config, weights=None, image_size=height if height == width else None), vocabulary


def fit_preprocessor(kind: str, images: Any, *, weights: str | None, image_size: int | None) -> ImageRule:
    """How images are prepared: as the weights want them, from scratch as they are."""
    del kind  # image
    if weights is None:
        return image_rules.of_data(images, image_size)
    return vit_folder.describe(huggingface.resolve(weights), image_size).rule


def blocks(config: ViTConfig) -> tuple[int, int]:
    """The number of layers, and of units inside the feed-forward of each."""
    if config.weights is None:
        return config.layers or SCRATCH["layers"], config.intermediate or SCRATCH["intermediate"]
    found = vit_folder.describe(huggingface.resolve(config.weights), config.image_size).architecture
    return found.layers, found.intermediate


def rotate(config: ViTConfig, parameters: Any, rotation: np.ndarray) -> tuple[ViTConfig, Any]:
    """The projection rotated; without one, the rotation is the projection."""
    if not config.projection:
        config = replace(config, projection=True)
        layer: dict[str, np.ndarray] = {"kernel": np.eye(len(rotation), dtype=np.float32)}
        if VISION[config.family or "vit"].projection_bias:
            layer["bias"] = np.zeros(len(rotation), np.float32)
        parameters = {**parameters, "projection": layer}
    return config, rotate_layers(parameters, ("projection",), rotation)


class AttentionPool(nnx.Module):
    """One learnt query that attends to all tokens, then feed-forward: h = attention(q, x);  h + feed_forward(LN(h)).

    The pooling of SigLIP (Zhai et al., 2023) and of "Set Transformer" (Lee et al., 2019)."""

    def __init__(self, a: Architecture, dtype: str, rngs: nnx.Rngs) -> None:
        self.heads, self.function = a.heads, BLOCK_FUNCTIONS[a.described.function]
        self.probe = nnx.Param(initial(rngs.params(), (a.hidden,)))
        self.query, self.key, self.value, self.attended = (Linear(a.hidden, a.hidden, dtype, rngs) for _ in range(4))
        self.norm = norm_of(a, a.hidden, rngs)
        self.up = Linear(a.hidden, a.intermediate, dtype, rngs)
        self.down = Linear(a.intermediate, a.hidden, dtype, rngs)
        self.units: Any = None  # as of `Block`

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, hidden] → [B, hidden]."""
        batch, length, hidden = x.shape
        query = self.query(self.probe[...][None, None]).reshape(self.heads, -1)
        key, value = (linear(x).reshape(batch, length, self.heads, -1) for linear in (self.key, self.value))
        weights = jax.nn.softmax(jnp.einsum("hk,bshk->bhs", query * query.shape[1] ** -0.5, key))
        h = self.attended(jnp.einsum("bhs,bshk->bhk", weights, value).reshape(batch, 1, hidden))
        inner = self.function(self.up(self.norm(h)))
        return (h + self.down(inner if self.units is None else inner * self.units))[:, 0]


class ViT(nnx.Module):
    """Inputs {"image": uint8 [B, h, w, c]} → float32 [B, D]. Of images larger than `image_size`, evaluation reads the
    centre and training a part as augmentation draws it. Or what comes before the projection, {"pooled": float32
    [B, hidden]}. With `layers` as `Transformer`."""

    def __init__(
        self, config: ViTConfig, *, inputs: dict[str, tuple[int, ...]], vocabulary: int, width: int, rngs: nnx.Rngs
    ) -> None:
        """Raises `UserError` if the inputs are no images, sizes disagree, or the weights cannot be loaded."""
        del vocabulary  # text only
        if "image" not in inputs:
            raise UserError(f"encoder=vit needs images, but the data has {', '.join(inputs) or 'no input'}")
        config, a = complete(config, tuple(inputs["image"]))
        if not config.projection and width != a.hidden:
            raise UserError(
                f"width={width} is not allowed; encoder.hidden={a.hidden} needs width={a.hidden} or "
                "encoder.projection=true"
            )
        family = a.described
        self.config, self.architecture, self.dropout = config, a, config.dropout
        self.patches = Linear(a.patch**2 * a.channels, a.hidden, config.dtype, rngs, bias=family.patch_bias)
        self.class_token = nnx.Param(initial(rngs.params(), (a.hidden,))) if a.class_token else None
        self.registers = nnx.Param(initial(rngs.params(), (a.registers, a.hidden))) if a.registers else None
        learned = a.position == "learned"
        self.position = nnx.Param(initial(rngs.params(), (a.places, a.hidden))) if learned else None
        self.norm = norm_of(a, a.hidden, rngs) if family.embedding_norm else None
        self.blocks = nnx.List([Block(a, config, rngs, layer) for layer in range(a.layers)])
        self.final_norm = norm_of(a, a.hidden, rngs)
        self.pool = AttentionPool(a, config.dtype, rngs) if a.pooling == "attention" else None
        bias = family.projection_bias
        self.projection = Linear(a.hidden, width, config.dtype, rngs, bias=bias) if config.projection else None
        if config.weights is not None:
            check_width(config, width)
            folder = huggingface.resolve(config.weights)
            loaded = vit_folder.load(folder, vit_folder.describe(folder, config.image_size), a)
            flat: Any = {path: nnx.Param(jnp.asarray(array)) for path, array in loaded.items()}
            nnx.update(self, nnx.State.from_flat_path(flat))

    def __call__(
        self, inputs: dict[str, jax.Array], *, rngs: nnx.Rngs | None = None, layers: tuple[int, ...] | None = None
    ) -> jax.Array:
        """Embed a batch; `rngs` given means training."""
        if layers is not None:
            return jnp.stack([self.projected(self.pooled(x)) for x in self.states_after(layers, inputs, rngs)])
        if "pooled" in inputs:
            return self.projected(inputs["pooled"])
        return self.projected(self.pooled(self.states_after((len(self.blocks),), inputs, rngs)[0]))

    def projected(self, z: jax.Array) -> jax.Array:
        """The embedding [B, D] of what was pooled [B, hidden]."""
        return z if self.projection is None else self.projection(z[:, None])[:, 0]

    def pooled(self, x: jax.Array) -> jax.Array:
        """What comes before the projection [B, hidden], of the output of the layers."""
        a = self.architecture
        if self.pool is not None:
            pooled: jax.Array = self.pool(x)
            return pooled
        return x[:, 0] if a.pooling == "cls" else x[:, int(a.class_token) + a.registers :].mean(axis=1)

    def states_after(
        self, after: tuple[int, ...], inputs: dict[str, jax.Array], rngs: nnx.Rngs | None
    ) -> list[jax.Array]:
        """The output after each of these numbers of layers, [B, L, hidden]."""
        a, config, images = self.architecture, self.config, inputs["image"]
        size = (a.grid[0] * a.patch, a.grid[1] * a.patch)
        pixels = center_crop(images, size) if rngs is None else in_training(config, rngs.dropout, images, size)
        pixels = (pixels.astype(jnp.float32) / 255 - jnp.array(config.mean)) / jnp.array(config.std)
        x: jax.Array = self.embedded(mixed(pixels, inputs.get("mix")))
        x = drop(x, self.dropout, rngs)
        x = x if self.norm is None else self.norm(x)
        seen = jnp.zeros((1, 1, 1, 1))  # every token sees all
        outputs = []
        for start, end in pairwise((0, *after)):
            part = list(self.blocks)[start:end]
            if config.remat and rngs is not None:
                x = apply_and_forget([(False, block) for block in part], x, {False: (seen, None)}, rngs, None)
            else:
                for block in part:
                    x = block(x, seen, rngs)
            outputs.append(self.final_norm(x))
        return outputs

    def embedded(self, pixels: jax.Array) -> jax.Array:
        """The tokens before the first layer [B, L, hidden], of pixels [B, h, w, c]."""
        a = self.architecture
        batch, (rows, columns) = pixels.shape[0], a.grid
        blocks = pixels.reshape(batch, rows, a.patch, columns, a.patch, a.channels).swapaxes(2, 3)
        x = self.patches(blocks.reshape(batch, rows * columns, -1))
        before = []
        x = x + (sincos(a.grid, a.hidden) if self.position is None else self.position[int(a.class_token) :])
        if self.class_token is not None:
            token = self.class_token[...] if self.position is None else self.class_token[...] + self.position[0]
            before.append(token[None])
        if self.registers is not None:
            before.append(self.registers[...])
        if before:
            tokens = jnp.concatenate(before)
            x = jnp.concatenate([jnp.broadcast_to(tokens, (batch, *tokens.shape)), x], axis=1)
        return x

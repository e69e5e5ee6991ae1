"""The vision transformers that are read, `model_type` in config.json: one entry of `VISION` says where each differs.

All are computed by the one `ViT`, of the layers of `transformer_block` with norms before attention and feed-forward.
They differ in the names of their tensors, and in the parts that they have:

    class token     of ViT, DINOv2 and CLIP stands before the patches; SigLIP has none
    norm            CLIP has one more, before the first layer
    layer scale     DINOv2 multiplies what attention and feed-forward add by a factor for each feature
    registers       tokens without a place, after the class token; of DINOv2 with registers (Darcet et al., 2023)
    gate            the largest DINOv2 has feed-forward with a gate: down(silu(gate x) · up x)
    pooling         SigLIP attends to the tokens with one learnt query, which a feed-forward follows
    projection      of a whole CLIP: a linear map without bias
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from mrl_jax.encoders.families import Family
from mrl_jax.encoders.huggingface import ParameterPath, block_matrices, block_norms, norm_tensors

VitPooling = Literal["cls", "mean", "attention"]
Function = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
Position = Literal["learned", "sincos"]
VisionName = Literal["vit", "dinov2", "dinov2_swiglu", "clip", "siglip"]

# Our name of the function between the matrices of feed-forward → that of `transformer_block`, those of transformers.
FUNCTIONS: dict[Function, tuple[Any, tuple[str, ...]]] = {
    "gelu": ("gelu", ("gelu",)),
    "gelu_tanh": ("gelu_new", ("gelu_pytorch_tanh", "gelu_new")),
    "quick_gelu": ("quick_gelu", ("quick_gelu",)),
    "silu": ("silu", ("silu", "swish")),
}


@dataclass(frozen=True)
class VisionFamily(Family):
    """One architecture: as `Family`, and the names of what stands before and after the layers."""

    patch: str = "embeddings.patch_embeddings.projection"
    patch_bias: bool = True
    class_token: str | None = "embeddings.cls_token"  # None: there is none
    registers: str = "embeddings.register_tokens"
    attention_pooling: str | None = None  # the module of SigLIP's pooling
    projected: str | None = None  # a linear map after the pooling, of whole models
    pooling: VitPooling = "cls"  # by default
    gelu: Function = "gelu"  # the function by default
    projection_bias: bool = True
    model_types: tuple[str, ...] = ()  # in config.json; of the second, the settings are in vision_config
    processor: str = "ViT"  # how images are prepared where a folder does not say it, see `image_rules`


VIT = VisionFamily(
    model="ViTModel",
    prefix="vit.",
    names={
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
        "attended": "attention.output.dense",
        "attention_norm": "layernorm_before",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "layernorm_after",
    },
    position="embeddings.position_embeddings",
    embedding_norm=None,
    final_norm="layernorm",
    model_types=("vit",),
)
DINOV2 = replace(
    VIT,
    model="Dinov2Model",
    prefix="dinov2.",
    names={
        **VIT.names,
        "attention_norm": "norm1",
        "output_norm": "norm2",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    norm_epsilon=1e-6,
    layer_scale=1.0,
    model_types=("dinov2", "dinov2_with_registers"),
    processor="Bit",
)
CLIP = replace(
    VIT,
    model="CLIPVisionModel",
    prefix="vision_model.",
    names={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attended": "self_attn.out_proj",
        "attention_norm": "layer_norm1",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "output_norm": "layer_norm2",
    },
    blocks="encoder.layers",
    patch="embeddings.patch_embedding",
    patch_bias=False,
    class_token="embeddings.class_embedding",
    position="embeddings.position_embedding.weight",
    embedding_norm="pre_layrnorm",  # as it is spelt there
    final_norm="post_layernorm",
    norm_epsilon=1e-5,
    projected="visual_projection",
    gelu="quick_gelu",
    projection_bias=False,
    model_types=("clip_vision_model", "clip"),
    processor="CLIP",
)

VISION: dict[str, VisionFamily] = {
    "vit": VIT,
    "dinov2": DINOV2,
    "dinov2_swiglu": replace(
        DINOV2,
        names={**DINOV2.names, "gate": "mlp.weights_in#0", "up": "mlp.weights_in#1", "down": "mlp.weights_out"},
        gelu="silu",
    ),
    "clip": CLIP,
    "siglip": replace(
        CLIP,
        model="SiglipVisionModel",
        patch_bias=True,
        class_token=None,
        embedding_norm=None,
        norm_epsilon=1e-6,
        projected=None,
        attention_pooling="head",
        pooling="attention",
        gelu="gelu_tanh",
        projection_bias=True,
        model_types=("siglip_vision_model", "siglip"),
        processor="Siglip",
    ),
}


@dataclass(frozen=True)
class Architecture:
    """The sizes of an encoder of images: all that decides the shapes of its tensors, and what it computes."""

    family: str
    layers: int
    hidden: int  # width of the residual stream
    heads: int  # attention heads; divides hidden
    intermediate: int  # width between the two matrices of a feed-forward block
    patch: int  # side of a patch in pixels
    grid: tuple[int, int]  # patches of an image, from top to bottom and from left to right
    channels: int
    function: Function
    layer_norm_eps: float
    class_token: bool
    registers: int  # number of them
    layer_scale: float  # initial factors; 0: there are none
    position: Position
    pooling: VitPooling

    @property
    def described(self) -> VisionFamily:
        """The entry of its family, with the function and the factors of this one."""
        return replace(VISION[self.family], function=FUNCTIONS[self.function][0], layer_scale=self.layer_scale or None)

    @property
    def features(self) -> int:
        """Features of a head."""
        return self.hidden // self.heads

    @property
    def heads_of_keys(self) -> int:
        """Heads of keys and of values."""
        return self.heads

    @property
    def places(self) -> int:
        """Rows of the table of positions: the class token, then the patches row by row."""
        return int(self.class_token) + self.grid[0] * self.grid[1]


def tensors(a: Architecture) -> Iterator[tuple[ParameterPath, str, tuple[int, ...]]]:
    """The table of the tensors without the projection, as `huggingface.tensors`: path of our parameter, name there,
    shape here. Those of patches and tokens have axes of 1 there, or four of them: see `vit_folder.flat`."""
    family = a.described
    yield ("patches", "kernel"), f"{family.patch}.weight", (a.patch**2 * a.channels, a.hidden)
    if family.patch_bias:
        yield ("patches", "bias"), f"{family.patch}.bias", (a.hidden,)
    if a.class_token and family.class_token:
        yield ("class_token",), family.class_token, (a.hidden,)
    if a.registers:
        yield ("registers",), family.registers, (a.registers, a.hidden)
    if family.position and a.position == "learned":
        yield ("position",), family.position, (a.places, a.hidden)
    for ours, theirs in (("norm", family.embedding_norm), ("final_norm", family.final_norm)):
        if theirs is not None:
            yield from norm_tensors(a, (ours,), theirs, a.hidden)
    yield from block_matrices(a)
    yield from block_norms(a)
    for i in range(a.layers if a.layer_scale else 0):
        yield ("blocks", i, "attention_scale"), f"{family.blocks}.{i}.layer_scale1.lambda1", (a.hidden,)
        yield ("blocks", i, "output_scale"), f"{family.blocks}.{i}.layer_scale2.lambda1", (a.hidden,)
    if a.pooling == "attention" and family.attention_pooling:
        head = family.attention_pooling
        yield ("pool", "probe"), f"{head}.probe", (a.hidden,)
        for number, ours in enumerate(("query", "key", "value")):
            yield ("pool", ours, "kernel"), f"{head}.attention.in_proj_weight#{number}", (a.hidden, a.hidden)
            yield ("pool", ours, "bias"), f"{head}.attention.in_proj_bias#{number}", (a.hidden,)
        for ours, theirs, n_in, n_out in (
            ("attended", "attention.out_proj", a.hidden, a.hidden),
            ("up", "mlp.fc1", a.hidden, a.intermediate),
            ("down", "mlp.fc2", a.intermediate, a.hidden),
        ):
            yield ("pool", ours, "kernel"), f"{head}.{theirs}.weight", (n_in, n_out)
            yield ("pool", ours, "bias"), f"{head}.{theirs}.bias", (n_out,)
        yield from norm_tensors(a, ("pool", "norm"), f"{head}.layernorm", a.hidden)

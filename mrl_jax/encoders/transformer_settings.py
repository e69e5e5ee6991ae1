"""The settings of `encoder=transformer`: what they are, what pretrained weights say of them, and what is allowed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mrl_jax.data.prompts import Prompts
from mrl_jax.encoders import huggingface, lora
from mrl_jax.encoders.base import EncoderConfig
from mrl_jax.encoders.block_settings import SIZES, check_agreement, check_blocks
from mrl_jax.encoders.families import EXTRA, FAMILIES, Architecture, FamilyName
from mrl_jax.encoders.pooling import POOLINGS, Pooling
from mrl_jax.system.errors import UserError, at_least, limited, one_of

SCRATCH = Architecture(vocabulary=0, layers=6, hidden=384, heads=12, intermediate=1536, positions=256)
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
        check_agreement(config, given, architecture)
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
    check_blocks(config)
    assert config.hidden is not None
    assert config.heads is not None
    for key in ("max_length", "rope_theta", "local_theta", "window", "global_every", "kv_heads", "head_size"):
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
    one_of("encoder.pooling", config.pooling, POOLINGS)


def blocks(config: TransformerConfig) -> tuple[int, int]:
    """The number of layers, and of units inside the feed-forward of each."""
    _, sizes = complete(config, 0)
    return sizes.layers, sizes.intermediate

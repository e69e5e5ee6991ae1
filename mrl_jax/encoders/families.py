"""The architectures that are read, `model_type` in config.json: one entry of `FAMILIES` says where each differs.

All are computed by the one `Transformer`. They differ in the names of their tensors and settings, in the parts that
they have, and in what they compute:

    norms       BERT normalises the sum after attention and after feed-forward. ModernBERT and Qwen3 normalise what
                goes into them, and the end once more (`final_norm`); Qwen3 and T5 by the root mean square alone
    positions   BERT and DistilBERT count the tokens of a text from row 0. RoBERTa and MPNet count from the row after
                that of their padding token; a padding token within a text has that row and is not counted.
                `rope_theta`: no table, but queries and keys are rotated by an angle per token (Su et al., 2021)
    relative    MPNet and T5 add to the attention scores of all layers a bias per head, by the distance of two tokens
    attention   ModernBERT's layers see a `window`, but every `global_every`-th; Qwen3's tokens see no later ones
                (`causal`), and several of its heads share keys and values (`kv_heads`)
    gate        feed-forward is down(f(up x)), or with a gate down(f(gate x) · up x) (Shazeer, 2020)
    scaled      T5 does not divide attention scores by √k; it has no positions but the bias by distance

A further architecture is an entry here if it differs in no more than this.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BUCKETS = 32  # of distances of two tokens, half of them for each side
FARTHEST = 128  # tokens: all that are farther away share a bucket


@dataclass(frozen=True)
class Family:
    """One architecture: its names in Hugging Face format and the parts that it has.

    A name such as `Wqkv#1` is the second of several equal parts of one tensor, side by side.
    """

    model: str  # class in transformers
    prefix: str  # of the names of tensors, where a file also holds the head of a training objective
    names: Mapping[str, str]  # our layer of a block → the name of its tensors
    tokenizer: str = "BertTokenizer"  # class in transformers, where a folder names none
    model_type: str | None = None  # in config.json, where several entries have the same; None: the name of the entry
    word: str = "embeddings.word_embeddings"
    position: str | None = "embeddings.position_embeddings"  # None: there is no such table
    relative: str | None = None  # the table of the bias by distance
    embedding_norm: str | None = "embeddings.LayerNorm"
    final_norm: str | None = None  # of a family that normalises before attention and feed-forward
    blocks: str = "encoder.layer"
    keys: Mapping[str, str] = field(default_factory=dict)  # our size → its key in config.json, where it is not BERT's
    old_keys: Mapping[str, str] = field(default_factory=dict)  # a key of older files → the one of today
    fixed: Mapping[str, Any] = field(default_factory=dict)  # further content of a config.json that is written
    dropouts: tuple[str | None, str | None] = (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
    )  # keys in config.json
    activation: str = "hidden_act"  # key in config.json
    function: Literal["gelu", "gelu_new", "quick_gelu", "relu", "silu"] = "gelu"
    function_name: str | None = None  # its value there, where it is another
    norm: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True
    norm_epsilon: float = 1e-12  # by default
    bias: bool = True  # of the linear maps
    first_norm: bool = True  # whether the first block has a norm before its attention
    settings: Mapping[str, Any] = field(default_factory=dict)  # those of `EXTRA` that it has → default
    token_types: int = 0  # rows of the table by default; 0: there is no such table
    padding_id: int | None = None  # by default, of families that count positions from it; None: from 0
    padding_is_read: bool = False  # whether config.json says which id that is
    scaled: bool = True  # whether attention scores are divided by √k
    layer_scale: float | None = None  # initial factors of what attention and feed-forward add; None: there are none
    pooler: bool = True  # whether transformers expects one: no embedding of a sentence reads it

    @property
    def rotary(self) -> bool:
        """Whether positions are angles."""
        return "rope_theta" in self.settings

    @property
    def written_function(self) -> str:
        """The value of `activation` in config.json."""
        return self.function_name or self.function


BERT = Family(
    model="BertModel",
    prefix="bert.",
    names={
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attended": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    keys={"token_types": "type_vocab_size", "layer_norm_eps": "layer_norm_eps"},
    token_types=2,
)


def roberta(model: str, tokenizer: str) -> Family:
    """RoBERTa, and those that differ from it in their tokenizer alone."""
    return Family(
        model=model,
        prefix="roberta.",
        names=BERT.names,
        tokenizer=tokenizer,
        keys=BERT.keys,
        token_types=1,
        padding_id=1,
        padding_is_read=True,
    )


def t5(names: Mapping[str, str], function: Literal["relu", "gelu_new"], function_name: str) -> Family:
    """The encoder of T5 (Raffel et al., 2020); `names` are the matrices of its feed-forward."""
    attention, feed_forward = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    return Family(
        model="T5EncoderModel",
        prefix="",
        names={
            **{name: f"{attention}.{name[0]}" for name in ("query", "key", "value")},
            "attended": f"{attention}.o",
            "attention_norm": "layer.0.layer_norm",
            **{name: f"{feed_forward}.{theirs}" for name, theirs in names.items()},
            "down": f"{feed_forward}.wo",
            "output_norm": "layer.1.layer_norm",
        },
        tokenizer="T5Tokenizer",
        model_type="t5",
        word="shared",
        position=None,
        relative=f"encoder.block.0.{attention}.relative_attention_bias",
        embedding_norm=None,
        final_norm="encoder.final_layer_norm",
        blocks="encoder.block",
        keys={
            "layers": "num_layers",
            "hidden": "d_model",
            "heads": "num_heads",
            "intermediate": "d_ff",
            "head_size": "d_kv",
            "positions": "n_positions",
            "layer_norm_eps": "layer_norm_epsilon",
        },
        fixed={"relative_attention_max_distance": FARTHEST},
        dropouts=("dropout_rate", None),
        activation="feed_forward_proj",
        function=function,
        function_name=function_name,
        norm="rms",
        norm_epsilon=1e-6,
        bias=False,
        settings={"head_size": None},
        scaled=False,
        pooler=False,
    )


FamilyName = Literal[
    "bert", "distilbert", "roberta", "xlm-roberta", "camembert", "mpnet", "modernbert", "nomic_bert", "qwen3", "t5",
    "t5_gated",
]  # fmt: skip

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "distilbert": Family(
        model="DistilBertModel",
        prefix="distilbert.",
        names={
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attended": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
            "output_norm": "output_layer_norm",
        },
        blocks="transformer.layer",
        keys={"layers": "n_layers", "hidden": "dim", "heads": "n_heads", "intermediate": "hidden_dim"},
        dropouts=("dropout", "attention_dropout"),
        activation="activation",
        pooler=False,
    ),
    "roberta": roberta("RobertaModel", "RobertaTokenizer"),
    "xlm-roberta": roberta("XLMRobertaModel", "XLMRobertaTokenizer"),
    "camembert": roberta("CamembertModel", "CamembertTokenizer"),
    "mpnet": Family(
        model="MPNetModel",
        prefix="mpnet.",
        names={
            **BERT.names,
            "query": "attention.attn.q",
            "key": "attention.attn.k",
            "value": "attention.attn.v",
            "attended": "attention.attn.o",
            "attention_norm": "attention.LayerNorm",
        },
        tokenizer="MPNetTokenizer",
        keys={"layer_norm_eps": "layer_norm_eps"},
        relative="encoder.relative_attention_bias",
        padding_id=1,
    ),
    "modernbert": Family(
        model="ModernBertModel",
        prefix="model.",
        names={
            **{name: f"attn.Wqkv#{i}" for i, name in enumerate(("query", "key", "value"))},
            "attended": "attn.Wo",
            "attention_norm": "attn_norm",
            "gate": "mlp.Wi#0",
            "up": "mlp.Wi#1",
            "down": "mlp.Wo",
            "output_norm": "mlp_norm",
        },
        tokenizer="TokenizersBackend",
        word="embeddings.tok_embeddings",
        position=None,
        embedding_norm="embeddings.norm",
        final_norm="final_norm",
        blocks="layers",
        keys={"layer_norm_eps": "norm_eps", "window": "local_attention", "global_every": "global_attn_every_n_layers"},
        dropouts=("mlp_dropout", "attention_dropout"),
        activation="hidden_activation",
        norm_bias=False,
        norm_epsilon=1e-5,
        bias=False,
        first_norm=False,
        settings={"rope_theta": 160_000.0, "local_theta": 10_000.0, "window": 128, "global_every": 3},
        pooler=False,
    ),
    "nomic_bert": Family(
        model="NomicBertModel",
        prefix="bert.",
        names={
            **{name: f"attn.Wqkv#{i}" for i, name in enumerate(("query", "key", "value"))},
            "attended": "attn.out_proj",
            "attention_norm": "norm1",
            "gate": "mlp.fc12",
            "up": "mlp.fc11",
            "down": "mlp.fc2",
            "output_norm": "norm2",
        },
        embedding_norm="emb_ln",
        position=None,
        blocks="encoder.layers",
        keys=BERT.keys,
        old_keys={
            "n_layer": "num_hidden_layers",
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "n_positions": "max_position_embeddings",
            "layer_norm_epsilon": "layer_norm_eps",
            "rotary_emb_base": "rope_theta",
        },
        function="silu",
        bias=False,
        settings={"rope_theta": 1000.0},
        token_types=2,
        pooler=False,
    ),
    "qwen3": Family(
        model="Qwen3Model",
        prefix="model.",
        names={
            **{name: f"self_attn.{name[0]}_proj" for name in ("query", "key", "value")},
            "attended": "self_attn.o_proj",
            "query_norm": "self_attn.q_norm",
            "key_norm": "self_attn.k_norm",
            "attention_norm": "input_layernorm",
            "gate": "mlp.gate_proj",
            "up": "mlp.up_proj",
            "down": "mlp.down_proj",
            "output_norm": "post_attention_layernorm",
        },
        tokenizer="Qwen2Tokenizer",
        word="embed_tokens",
        position=None,
        embedding_norm=None,
        final_norm="norm",
        blocks="layers",
        keys={"layer_norm_eps": "rms_norm_eps", "kv_heads": "num_key_value_heads", "head_size": "head_dim"},
        fixed={"use_sliding_window": False, "attention_bias": False},
        dropouts=(None, "attention_dropout"),
        function="silu",
        norm="rms",
        norm_epsilon=1e-6,
        bias=False,
        settings={"rope_theta": 10_000.0, "kv_heads": None, "head_size": None, "causal": True},
        pooler=False,
    ),
    "t5": t5({"up": "wi"}, "relu", "relu"),
    "t5_gated": t5({"gate": "wi_0", "up": "wi_1"}, "gelu_new", "gated-gelu"),
}

# Settings that only some families have; the others have None.
EXTRA = ("rope_theta", "local_theta", "window", "global_every", "kv_heads", "head_size", "causal")


@dataclass(frozen=True)
class Architecture:
    """The sizes of an encoder: all that decides the shapes of its tensors, and what it computes with them."""

    vocabulary: int  # token ids
    layers: int
    hidden: int  # width of the residual stream
    heads: int  # attention heads; divides hidden
    intermediate: int  # width between the two matrices of a feed-forward block
    positions: int  # tokens of the longest text
    token_types: int = 2  # rows of that table; 0: there is none
    layer_norm_eps: float = 1e-12
    family: str = "bert"
    padding_id: int | None = None  # positions count from the row after it; None: from row 0
    rope_theta: float | None = None  # base of the periods of rotation, in layers without a window
    local_theta: float | None = None  # base in layers with a window
    window: int | None = None  # tokens, half of them on each side of the one that attends
    global_every: int | None = None  # layers from one without a window to the next; the first has none
    kv_heads: int | None = None  # heads of keys and values; None: as many as of queries
    head_size: int | None = None  # features of a head; None: hidden / heads
    causal: bool | None = None  # whether tokens see no later ones

    @property
    def heads_of_keys(self) -> int:
        """Heads of keys and of values, each for as many heads of queries."""
        return self.kv_heads or self.heads

    @property
    def features(self) -> int:
        """Features of a head."""
        return self.head_size or self.hidden // self.heads

    def is_local(self, layer: int) -> bool:
        """Whether the tokens of a layer see a window."""
        return self.global_every is not None and layer % self.global_every > 0

    @property
    def first_position(self) -> int:
        """The row of a text's first token in the table of positions."""
        return 0 if self.padding_id is None else self.padding_id + 1

    @property
    def described(self) -> Family:
        """The entry of its family."""
        return FAMILIES[self.family]


# Our name → the key in config.json, where a family has no other; token_types and layer_norm_eps are not in all.
SIZE_KEYS = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
}


def config_keys(family: Family) -> dict[str, str]:
    """The size of an `Architecture` → its key in config.json; reading and writing both follow this."""
    return SIZE_KEYS | dict(family.keys)


def find_family(config: Mapping[str, Any]) -> str | None:
    """The name of the entry that a config.json asks for, of those with its model type the one with its activation, by
    default the first; None for a model type that no entry has."""
    kind = config.get("model_type")
    entries = [name for name, family in FAMILIES.items() if kind == (family.model_type or name)]
    named = [name for name in entries if config.get((f := FAMILIES[name]).activation) == f.written_function]
    return next(iter([*named, *entries]), None)


def to_config(architecture: Architecture) -> dict[str, Any]:
    """The content of config.json, without dropout."""
    a, family = architecture, architecture.described
    keys = config_keys(family)
    values = {theirs: getattr(a, ours) for ours, theirs in keys.items()}
    values[keys["positions"]] += a.first_position
    values |= {"pad_token_id": a.padding_id} if a.padding_id is not None else {}
    values |= {"relative_attention_num_buckets": BUCKETS} if family.relative else {}
    if family.rotary:
        thetas = ("rope_theta",) if a.local_theta is None else ("global_rope_theta", "local_rope_theta")
        values |= dict(zip(thetas, (a.rope_theta, a.local_theta), strict=False))
    complete = {"kv_heads": a.heads_of_keys, "head_size": a.features}
    values |= {keys[ours]: value for ours, value in complete.items() if ours in family.settings}
    values |= {"is_causal": False} if a.causal is False else {}
    return {
        "model_type": family.model_type or a.family, "architectures": [family.model],
        family.activation: family.written_function,
        **values, **family.fixed,
    }  # fmt: skip

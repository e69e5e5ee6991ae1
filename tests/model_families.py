"""Tiny model folders of every family, and what transformers and sentence-transformers make of them.

`MADE` maps a description of a folder to what makes it. `data/family_oracle.npz` has the token ids that transformers and
the vectors that sentence-transformers make with each, written by `data/make_family_oracle.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_folders import (
    LETTERS,
    SPECIAL,
    VOCABULARY,
    Change,
    both,
    config,
    numbers,
    pool,
    put,
    template,
    tokens,
    write,
)
from model_folders import WORDS as WHOLE
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from mrl_jax.encoders import families, huggingface
from mrl_jax.encoders.families import FAMILIES, Architecture
from mrl_jax.encoders.folder_tokenizer import QWEN2_PATTERN

POSITIONS = 150  # more than distances have buckets
TEXTS = [
    "the quick fox",
    "",
    "a lazy dog, résumé of a café",
    "中文 fox 中x",
    "stocks fell " * 90,  # cut
    "a <pad> fox <pad><pad> dog [PAD] x",  # padding inside of a text has no position of its own
    "a <mask> fox </s> dog [SEP]",
    "fox dog " * 40,
]
PARTS = [
    *["the", "Fox", "fox", " ", "  ", "\t", "\n", "x" * 120, "don't", "1,000.5", "résumé"],
    *["re\u0301sume\u0301", "CAFÉ", "中文", "😀", "\U0001f468\u200d\U0001f469", "\u200b"],
    *["\ufeff", "\u00a0", "\x00", "\x07", "\ufffd", "İ", "ß"],
    *["ﬁ", "Å", "<pad>", "<s>", "</s>", "<unk>", "<mask>", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "▁"],
    *["Ġ", "##x", "<s>NOTUSED", "क्ष", "٣", "ǅ", "\u202e", "ｆｕｌｌ", "a\u0300\u0301\u0302", "http://x.y/z?a=b#c", "…"],
    *["—", "'s", "'LL", "\r\n", "<", ">"],
]  # fmt: skip
NASTY = [
    *PARTS,
    # Two to seven parts, chosen by multiples that share no factor with their number.
    *("".join(PARTS[(i * 29 + j * (i % 37 + 5)) % len(PARTS)] for j in range(2 + i % 6)) for i in range(300)),
]
ANGLED = ["<s>", "<pad>", "</s>"]
NAMED = {"cls": "<s>", "bos": "<s>", "sep": "</s>", "eos": "</s>", "pad": "<pad>", "mask": "<mask>"}


def word_pieces() -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of DistilBERT, a cased one; and its special tokens."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = template("[CLS]", "[SEP]", tokenizer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer, {token[1:-1].lower(): token for token in SPECIAL} | {"lower": ""}


def mpnet_pieces() -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of MPNet: BERT's words, other special tokens."""
    words = [*ANGLED, "[UNK]", *VOCABULARY[len(SPECIAL) :], "<mask>"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = template("<s>", "</s>", tokenizer)
    tokenizer.add_special_tokens([*ANGLED, "[UNK]", "<mask>"])
    return tokenizer, NAMED | {"unk": "[UNK]"}


def byte_pairs() -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of RoBERTa: pieces of bytes, a word's with the blank before it."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("f", "o"), ("fo", "x"), ("Ġ", "fox"), ("d", "o"), ("Ġ", "do")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*ANGLED, "<unk>", *alphabet, *(a + b for a, b in merges), "<mask>"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = template("<s>", "</s>", tokenizer)
    tokenizer.add_special_tokens([*ANGLED, "<unk>", "<mask>"])
    return tokenizer, NAMED | {"unk": "<unk>"}


def unigram(first: list[str]) -> Callable[[], tuple[Tokenizer, dict[str, str]]]:
    """The tokenizer of XLM-RoBERTa and CamemBERT: SentencePiece's pieces, after the special tokens `first`."""

    def make() -> tuple[Tokenizer, dict[str, str]]:
        words = [*first, "▁", *(f"▁{word}" for word in WHOLE), *WHOLE[:-1], *LETTERS, "<mask>"]
        scores = [(piece, -float(len(words) - i)) for i, piece in enumerate(words)]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=first.index("<unk>")))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
        )
        tokenizer.post_processor = template("<s>", "</s>", tokenizer)
        tokenizer.add_special_tokens([*ANGLED, "<unk>", "<mask>"])
        return tokenizer, NAMED | {"unk": "<unk>"}

    return make


def unigram_and_end() -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of T5: SentencePiece's pieces and a last token; words of its training objective come last."""
    words = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WHOLE), *WHOLE[:-1], *LETTERS]
    words += [f"<extra_id_{i}>" for i in range(EXTRA)[::-1]]
    scores = [(piece, -float(len(words) - i)) for i, piece in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *words[-EXTRA:]])
    return tokenizer, {"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}


def byte_pairs_as_stored() -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of ModernBERT: byte pairs between [CLS] and [SEP], every step as tokenizer.json has it."""
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe", "fo", "fox", "Ġfox"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("f", "o"), ("fo", "x"), ("Ġ", "fox")]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = template("[CLS]", "[SEP]", tokenizer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer, {token[1:-1].lower(): token for token in SPECIAL}


def byte_pairs_and_end() -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of Qwen3's embedding models: byte pairs, and a last token at which a text is read."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("f", "o"), ("fo", "x"), ("Ġ", "fox"), ("1", "0")]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges), END, "<|im_end|>", "!!"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [*merges, ("!", "!")]))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    last = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), last])
    tokenizer.add_special_tokens([END, "<|im_end|>"])
    return tokenizer, {"eos": "<|im_end|>", "pad": END}


EXTRA = 100  # tokens of T5 that stand for what is to be guessed
END = "<|endoftext|>"
NOT_USED = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
TOKENIZERS = {
    "bert": word_pieces,
    "distilbert": word_pieces,
    "roberta": byte_pairs,
    "xlm-roberta": unigram([*ANGLED, "<unk>"]),
    "camembert": unigram(NOT_USED),
    "mpnet": mpnet_pieces,
    "modernbert": byte_pairs_as_stored,
    "nomic_bert": word_pieces,
    "qwen3": byte_pairs_and_end,
    "t5": unigram_and_end,
    "t5_gated": unigram_and_end,
}


def sizes(family: str, **values: Any) -> Architecture:
    """A small encoder of a family."""
    row = FAMILIES[family]
    found = Architecture(
        vocabulary=300, layers=2, hidden=16, heads=2, intermediate=24, positions=POSITIONS, family=family,
        token_types=row.token_types, padding_id=row.padding_id,
        layer_norm_eps=1e-5 if "layer_norm_eps" in row.keys else 1e-12,
    )  # fmt: skip
    return replace(found, **{**row.settings, **SMALLER.get(family, {}), **values})


SMALLER: dict[str, dict[str, Any]] = {
    "modernbert": {"layers": 3, "window": 9, "global_every": 2},
    "qwen3": {"heads": 4, "kv_heads": 2, "head_size": 6},
    "t5": {"head_size": 6},
    "t5_gated": {"head_size": 6},
}


@dataclass(frozen=True)
class Made:
    """A folder: its encoder, and what is changed after it is written."""

    sizes: Architecture
    change: Change = lambda folder: None

    def write(self, folder: Path) -> None:
        """The folder as sentence-transformers writes it."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for seed, (path, name, shape) in enumerate(huggingface.tensors(self.sizes)):
            scale = 4 if path[0] == "relative" else 1
            tensors[name] = huggingface.convert(path, scale * numbers(*shape, seed=seed) + (path[-1] == "scale"))
        save_file(huggingface.join(tensors), folder / "model.safetensors", {"format": "pt"})
        tokenizer, special = TOKENIZERS[self.sizes.family]()
        padding = {"pad_token_id": tokenizer.token_to_id(special["pad"])}  # unless positions depend on it
        write(folder, "config.json", padding | families.to_config(self.sizes))
        tokenizer.save(str(folder / "tokenizer.json"))
        lower = {"do_lower_case": False} if special.pop("lower", None) is not None else {}
        settings = {"tokenizer_class": FAMILIES[self.sizes.family].tokenizer, "model_max_length": POSITIONS} | lower
        write(folder, "tokenizer_config.json", settings | {f"{key}_token": token for key, token in special.items()})
        write(folder, "1_Pooling/config.json", {"embedding_dimension": 16, "pooling_mode": "mean"})
        listed = [("", "Transformer"), ("1_Pooling", "Pooling")]
        write(folder, "modules.json", [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(listed)
        ])  # fmt: skip
        self.change(folder)


FIRST_TOKEN = pool(pooling_mode="cls")
LAST_TOKEN = pool(pooling_mode="lasttoken")
TURNS = {"rope_theta": 77.0, "rope_type": "default"}
NEWER_MODERNBERT = put(
    "config.json", "global_attn_every_n_layers global_rope_theta local_rope_theta",
    layer_types=["full_attention", "sliding_attention", "full_attention"],
    rope_parameters={"full_attention": TURNS, "sliding_attention": {"rope_theta": 13.0, "rope_type": "default"}},
)  # fmt: skip
UNNAMED = put("tokenizer_config.json", "tokenizer_class")
BARE = tokens(" ".join(f"{key}_token" for key in (*NAMED, "unk")))
MADE: dict[str, Made] = {
    "bert": Made(sizes("bert")),
    "bert with one token type": Made(sizes("bert", token_types=1), FIRST_TOKEN),
    "distilbert": Made(sizes("distilbert")),
    "distilbert, first token": Made(sizes("distilbert"), both(FIRST_TOKEN, config(sinusoidal_pos_embds=True))),
    "distilbert with its own tokenizer": Made(
        sizes("distilbert"), tokens(tokenizer_class="DistilBertTokenizerFast", do_lower_case=True)
    ),
    "distilbert without a class of tokenizers": Made(sizes("distilbert"), UNNAMED),
    "roberta": Made(sizes("roberta")),
    "roberta, first token": Made(sizes("roberta"), both(FIRST_TOKEN, UNNAMED)),
    "roberta with another padding token": Made(sizes("roberta", padding_id=3, token_types=2)),
    "roberta with a blank before each text": Made(sizes("roberta"), both(BARE, tokens(add_prefix_space=True))),
    "roberta as stored": Made(sizes("roberta"), tokens(tokenizer_class="PreTrainedTokenizerFast")),
    "xlm-roberta": Made(sizes("xlm-roberta")),
    "xlm-roberta, first token": Made(sizes("xlm-roberta"), both(FIRST_TOKEN, UNNAMED, BARE)),
    "camembert": Made(sizes("camembert")),
    "camembert, first token": Made(sizes("camembert"), both(FIRST_TOKEN, UNNAMED, BARE)),
    "mpnet": Made(sizes("mpnet")),
    "mpnet, first token": Made(sizes("mpnet"), both(FIRST_TOKEN, UNNAMED, BARE)),
    "modernbert": Made(sizes("modernbert")),
    "modernbert as newer versions write it": Made(sizes("modernbert"), both(FIRST_TOKEN, UNNAMED, NEWER_MODERNBERT)),
    "nomic_bert": Made(sizes("nomic_bert")),
    "nomic_bert, maximum": Made(
        sizes("nomic_bert"), both(pool(pooling_mode="max"), put("config.json", "rope_theta", rope_parameters=TURNS))
    ),
    "qwen3": Made(sizes("qwen3"), both(LAST_TOKEN, tokens(padding_side="left", add_bos_token=False))),
    "qwen3, weighted mean": Made(
        sizes("qwen3"),
        both(pool(pooling_mode="weightedmean"), UNNAMED, put("config.json", "rope_theta", rope_parameters=TURNS)),
    ),
    "qwen3 in both directions": Made(sizes("qwen3", causal=False), tokens(padding_side="left")),
    "t5": Made(sizes("t5")),
    "t5 as older versions write it": Made(
        sizes("t5"),
        both(
            UNNAMED,
            tokens("eos_token unk_token pad_token"),
            config(is_encoder_decoder=True, dropout_rate=0.1),
            put("config.json", "feed_forward_proj relative_attention_max_distance relative_attention_num_buckets"),
        ),
    ),
    "t5_gated": Made(sizes("t5_gated"), config(dense_act_fn="gelu_new", is_gated_act=True, tie_word_embeddings=False)),
    "t5_gated, first token": Made(sizes("t5_gated"), both(FIRST_TOKEN, tokens(padding_side="left"))),
    "bert, last token": Made(sizes("bert"), LAST_TOKEN),
    "bert, maximum": Made(sizes("bert"), pool(pooling_mode="max")),
    "bert, weighted mean": Made(sizes("bert"), pool(pooling_mode="weightedmean")),
    "mpnet in upper case": Made(sizes("mpnet"), tokens(do_lower_case=False, tokenize_chinese_chars=False)),
}

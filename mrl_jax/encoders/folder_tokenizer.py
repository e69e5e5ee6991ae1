"""The tokenizer of a model folder: tokenizer.json, changed by tokenizer_config.json as transformers 5 changes it.

A class of transformers either reads tokenizer.json as it stands, or takes the vocabulary from it and makes the other
steps itself, by the settings in tokenizer_config.json. `CLASSES` says which does what.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors

from mrl_jax.encoders.folder_settings import SPECIAL_TOKENS, TEXTS_ONLY, flag, read_json, read_settings
from mrl_jax.system.errors import UserError
from mrl_jax.text import untrusted

Content = dict[str, Any]  # of tokenizer.json
Change = Callable[[Content, dict[str, Any], Path], None]  # (content, settings, the file of the settings)
OTHER_FILES = ("vocab.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.json")  # in its place
ANGLED = {
    "bos": "<s>",
    "eos": "</s>",
    "sep": "</s>",
    "cls": "<s>",
    "unk": "<unk>",
    "pad": "<pad>",
    "mask": "<mask>",
}
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NOT_USED = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")  # in CamemBERT's vocabulary
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def as_bert(content: Content, config: dict[str, Any], file: Path) -> None:
    """WordPiece after BERT's own normalizer, between [CLS] and [SEP]."""
    word_pieces(content, config, file, {name: f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")})


def as_mpnet(content: Content, config: dict[str, Any], file: Path) -> None:
    """As BERT, between <s> and </s>."""
    word_pieces(content, config, file, ANGLED | {"unk": "[UNK]"})


def as_qwen2(content: Content, config: dict[str, Any], file: Path) -> None:
    """Byte-level BPE of the text in normal form C, split by Qwen's own pattern; the last step as stored."""
    set_special(config, dict.fromkeys(("unk", "eos", "pad"), "<|endoftext|>"))
    blank = flag(file, config, "add_prefix_space") is True
    byte_pairs(content)
    content["normalizer"] = {"type": "NFC"}
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False)
    words = [split, pre_tokenizers.ByteLevel(add_prefix_space=blank, use_regex=False)]
    content["pre_tokenizer"] = state_of(pre_tokenizers.Sequence(words))


def byte_pairs(content: Content) -> None:
    """The vocabulary and merges of byte pairs, and nothing else of their model."""
    content["model"] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": content["model"]["vocab"],
        "merges": content["model"]["merges"],
    }


def word_pieces(content: Content, config: dict[str, Any], file: Path, names: dict[str, str]) -> None:
    """WordPiece after BERT's normalizer; `names` are the special tokens that the settings do not name."""
    set_special(config, names)
    unknown, first, last = (text_of(config[name], file, name) for name in ("unk_token", "cls_token", "sep_token"))
    content["model"] = {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": content["model"]["vocab"],
    }
    content["normalizer"] = state_of(
        normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=flag(file, config, "tokenize_chinese_chars") is not False,
            strip_accents=flag(file, config, "strip_accents"),
            lowercase=flag(file, config, "do_lower_case") is not False,
        )
    )
    content["pre_tokenizer"] = state_of(pre_tokenizers.BertPreTokenizer())
    content["post_processor"] = between(first, last, content["model"]["vocab"], file)


def as_roberta(content: Content, config: dict[str, Any], file: Path) -> None:
    """Byte-level BPE of the text as it is, between <s> and </s>."""
    set_special(config, ANGLED)
    blank = flag(file, config, "add_prefix_space") is True
    byte_pairs(content)
    content["normalizer"] = None
    content["pre_tokenizer"] = state_of(pre_tokenizers.ByteLevel(add_prefix_space=blank))
    first, last = (text_of(config[name], file, name) for name in ("cls_token", "sep_token"))
    content["post_processor"] = between(first, last, content["model"]["vocab"], file)


def as_xlm_roberta(content: Content, config: dict[str, Any], file: Path) -> None:
    """Unigram over words that begin with ▁, between <s> and </s>."""
    set_special(config, ANGLED)
    pieces(content, config, file, unknown=3)


def as_camembert(content: Content, config: dict[str, Any], file: Path) -> None:
    """As XLM-RoBERTa, with some more special tokens; the unknown token may stand anywhere."""
    set_special(config, ANGLED)
    name = text_of(config["unk_token"], file, "unk_token")
    tokens = [token for token, _ in content["model"]["vocab"]]
    if config.get("additional_special_tokens") is None and config.get("extra_special_tokens") is None:
        config["additional_special_tokens"] = [token for token in NOT_USED if token in tokens]
    pieces(content, config, file, unknown=tokens.index(name) if name in tokens else 0)


def as_t5(content: Content, config: dict[str, Any], file: Path) -> None:
    """Unigram as XLM-RoBERTa, with nothing before a text; `<extra_id_…>` stand for what was to be guessed."""
    set_special(config, {"unk": "<unk>", "eos": "</s>", "pad": "<pad>"})
    extra = config.get("extra_ids", 100)
    if not isinstance(extra, int) or isinstance(extra, bool) or not 0 <= extra <= 1000:
        raise UserError(f"{file}: extra_ids={json.dumps(extra)} is not allowed; a whole number from 0 to 1000")
    if not config.get("additional_special_tokens") and not config.get("extra_special_tokens"):
        known = {token for token, _ in content["model"]["vocab"]}
        guessed = (f"<extra_id_{i}>" for i in range(extra))
        config["additional_special_tokens"] = [token for token in guessed if token in known]
    ids = unigram(content, "always", unknown=2)
    content["post_processor"] = between("", text_of(config["eos_token"], file, "eos_token"), ids, file)


def pieces(content: Content, config: dict[str, Any], file: Path, unknown: int) -> None:
    """The pieces of SentencePiece's Unigram between two special tokens."""
    ids = unigram(content, "always" if flag(file, config, "add_prefix_space") is not False else "never", unknown)
    first, last = (text_of(config[name], file, name) for name in ("bos_token", "eos_token"))
    content["post_processor"] = between(first, last, ids, file)


def unigram(content: Content, scheme: str, unknown: int) -> dict[str, int]:
    """SentencePiece's Unigram, with or without a blank before a text, and the id of each piece; `unknown` is that of
    the token for what it does not know."""
    vocabulary = content["model"]["vocab"]
    content["model"] = {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": False}
    steps = steps_of(content.get("normalizer"))
    content["normalizer"] = next((step for step in steps if step.get("type") == "Precompiled"), None)
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    content["pre_tokenizer"] = state_of(pre_tokenizers.Sequence(words))
    return {token: i for i, (token, _) in enumerate(vocabulary)}


def set_special(config: dict[str, Any], names: dict[str, str]) -> None:
    """The special tokens of a class, where the settings do not name them."""
    config |= {f"{name}_token": token for name, token in names.items() if f"{name}_token" not in config}


def as_stored(content: Content, config: dict[str, Any], file: Path) -> None:
    """Every step as tokenizer.json has it."""
    del content, config, file


CLASSES: dict[str, Change] = {
    "BertTokenizer": as_bert,
    "DistilBertTokenizer": as_bert,
    "RobertaTokenizer": as_roberta,
    "XLMRobertaTokenizer": as_xlm_roberta,
    "CamembertTokenizer": as_camembert,
    "MPNetTokenizer": as_mpnet,
    "Qwen2Tokenizer": as_qwen2,
    "T5Tokenizer": as_t5,
    "PreTrainedTokenizer": as_stored,
    "TokenizersBackend": as_stored,
}


MODELS = {
    "RobertaTokenizer": "BPE",
    "Qwen2Tokenizer": "BPE",
    "XLMRobertaTokenizer": "Unigram",
    "CamembertTokenizer": "Unigram",
    "T5Tokenizer": "Unigram",
}  # others WordPiece


def load(folder: Path, ids: int, length: int, default: str, either_side: bool = False) -> Tokenizer:
    """The tokenizer in `folder`: it yields ids below `ids`, truncates to `length` tokens and never pads. Its class is
    `default` where no file names one; padding on `either_side` is the same to the encoder.

    Raises `UserError` for a missing or broken tokenizer.json, a setting that is not supported, and a length that the
    tokenizer cannot have.
    """
    if not (stored := folder / "tokenizer.json").exists():
        others = [name for name in OTHER_FILES if (folder / name).exists()]
        hint = f"; {others[0]} is not read: transformers writes tokenizer.json when it saves" if others else ""
        raise UserError(f"{stored} is missing; it is needed to turn text into token ids{hint}")
    file, at = folder / "tokenizer_config.json", folder / "sentence_bert_config.json"
    config = read_settings(file)
    if "added_tokens_decoder" not in config and (older := folder / "special_tokens_map.json").exists():
        config = config | read_json(older)
    sentences = read_settings(at)
    lower = flag(at, sentences, "do_lower_case")
    if config.get("padding_side") not in ("right", None, *(["left"] if either_side else [])):
        raise UserError(
            f"{file}: padding_side={json.dumps(config['padding_side'])} is not supported; allowed: "
            + ('"left", "right"' if either_side else '"right"')
        )
    # sentence-transformers 6 writes a text into the template, unless the folder says that it reads texts.
    template = folder / "chat_template.jinja"
    if (template.exists() or config.get("chat_template")) and sentences.get("modality_config") is None:
        raise UserError(
            f"{template if template.exists() else f'{file}: chat_template=…'} is not supported, unless {at} says with "
            f'modality_config={json.dumps(TEXTS_ONLY)}, module_output_name="token_embeddings" that texts are read '
            "without it"
        )
    name = config.get("tokenizer_class") or read_json(folder / "config.json").get("tokenizer_class")
    side = "right"

    def change(content: Content) -> None:
        nonlocal side
        key = str(name).removesuffix("Fast")
        if name is None:  # no class: that of the family, for its kind of vocabulary
            expected = MODELS.get(default, "WordPiece")
            key = default if content["model"].get("type") == expected else "TokenizersBackend"
        if key not in CLASSES:
            allowed = ", ".join(CLASSES)
            raise UserError(
                f"{file}: tokenizer_class={json.dumps(name)} is not supported; allowed: {allowed}, of which the last "
                "reads tokenizer.json as it stands"
            )
        kind, expected = content["model"].get("type"), MODELS.get(key, "WordPiece")
        if CLASSES[key] is not as_stored and kind != expected and "Unigram" in (kind, expected):
            raise UserError(f"{file}: tokenizer_class={json.dumps(name)} is for {expected}, but {stored} holds {kind}")
        padding, truncation = ((content.get(part) or {}).get("direction") for part in ("padding", "truncation"))
        if padding == "Left" and "padding_side" not in config and not either_side:
            raise UserError(f"{stored}: padding on the left is not supported; allowed: Right")
        side = config.get("truncation_side") or (truncation or side).lower()
        if side not in ("left", "right"):
            raise UserError(f"{file}: truncation_side={json.dumps(side)} is not allowed; left or right")
        content["padding"] = content["truncation"] = None
        CLASSES[key](content, config, file)
        content["added_tokens"] = added_tokens(content, config, file, keep=CLASSES[key] is as_stored)
        if lower:
            content["normalizer"] = in_lower_case(content.get("normalizer"))

    tokenizer = untrusted.read(stored, ids, change)
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if not special < length:
        raise UserError(f"max_length={length} is not allowed; at least {special + 1}: {special} are special tokens")
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, direction=side)
    return tokenizer


def added_tokens(content: Content, config: dict[str, Any], file: Path, keep: bool) -> list[dict[str, Any]]:
    """The tokens that are found before the text is split: those of tokenizer.json or of the settings, and the special
    ones. `keep` those of tokenizer.json that the settings do not list."""
    vocabulary = content["model"]["vocab"]
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {row[0]: i for i, row in enumerate(vocabulary)}
    tokens = {token["content"]: token for token in content.get("added_tokens") or ()}
    ids |= {text: token["id"] for text, token in tokens.items()}
    if "added_tokens_decoder" in config:
        listed = {
            text_of(token, file, "added_tokens_decoder"): {"id": int(i), **dict.fromkeys(TOKEN_FLAGS, False), **token}
            for i, token in config["added_tokens_decoder"].items()
        }
        tokens = (tokens if keep else {}) | listed
        for text, entry in listed.items():
            if ids.get(text) != entry["id"]:
                raise UserError(f"{file}: added_tokens_decoder has token {entry['id']}, which tokenizer.json has not")
    for key in (*SPECIAL_TOKENS.split(), "additional_special_tokens", "extra_special_tokens"):
        value: Any = config.get(key)
        value = list(value.values()) if key == "extra_special_tokens" and isinstance(value, dict) else value
        several = isinstance(value, list)
        for token in value if several else [] if value is None else [value]:
            text = text_of(token, file, key)
            if text in ids:
                flags = tokens.get(text, {**dict.fromkeys(TOKEN_FLAGS, False), "id": ids[text], "content": text})
                tokens[text] = flags | {"special": True}
            elif several:
                raise UserError(f"{file}: {key} has {json.dumps(text)}, which tokenizer.json has not")
    names = ("id", "content", *TOKEN_FLAGS)
    return [{name: token[name] for name in names} for token in sorted(tokens.values(), key=lambda token: token["id"])]


def text_of(token: Any, file: Path, key: str) -> str:
    """The text of a token: written as it is, or with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise UserError(f"{file}: {key}={json.dumps(token)} is not allowed; a token")
    return text


def between(first: str, last: str, ids: dict[str, int], file: Path) -> Any:
    """The step that puts a text between two special tokens, of which the first may be empty: none."""
    given = [token for token in (first, last) if token]
    for token in given:
        if token not in ids:
            raise UserError(f"{file}: the special token {json.dumps(token)} is not in tokenizer.json")
    single = " ".join([*given[:-1], "$A", last])
    pair = f"{single} $B:1 {last}:1"
    tokens = [(token, ids[token]) for token in given]
    return state_of(processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens))


def in_lower_case(normalizer: Any) -> Any:
    """Lower-case the text before a normalizer that does not, as sentence-transformers does."""
    steps = steps_of(normalizer)
    if any(step.get("type") == "Lowercase" for step in steps):
        return normalizer
    return {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}


def steps_of(normalizer: Any) -> list[Any]:
    """The steps of a normalizer, which is one of them, a sequence or none."""
    if normalizer is None:
        return []
    return list(normalizer["normalizers"]) if normalizer.get("type") == "Sequence" else [normalizer]


def state_of(step: Any) -> Any:
    """A step as it stands in tokenizer.json."""
    return json.loads(step.__getstate__())

"""Tiny model folders, each with one setting that sentence-transformers or transformers reads.

`VARIANTS` maps a description of a folder to the change that makes it. `data/folder_oracle.npz` has the vectors that
sentence-transformers makes of `TEXTS` with each, written by `data/make_folder_oracle.py`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mrl_jax.encoders import families, huggingface

TEXTS = [
    "the quick Fox",
    "a lazy dog, Résumé of a CAFÉ",
    "中文 fox 中x",
    "stocks fell " * 30,
    "a [MASK] fox [SEP] dog",
    "fox\u200bdog \x07 x",
    "",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "quick", "fox", "Fox", "dog", "lazy", "query"]
WORDS += ["stocks", "fell", "cafe", "café", "résumé", "resume", "x"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyzACDEFRSTQé中文,:", *"[]"]
VOCABULARY = [*SPECIAL, *dict.fromkeys([*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)])]
SIZES = families.Architecture(
    vocabulary=len(VOCABULARY) + 20, layers=2, hidden=16, heads=2, intermediate=24, positions=40
)
Change = Callable[[Path], None]


def numbers(*shape: int, seed: int) -> np.ndarray:
    """Numbers in [-0.5, 0.5) that look random and are the same everywhere."""
    counter = (np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(seed << 20)) * np.uint64(2654435761)
    counter = (counter ^ (counter >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(2**32)
    return (counter / 2**32 - 0.5).astype(np.float32).reshape(shape)


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def make(folder: Path) -> None:
    """A folder as sentence-transformers 6 writes it: a cased WordPiece, the mean of the tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for seed, (path, name, shape) in enumerate(huggingface.tensors(SIZES)):
        array = numbers(*shape, seed=seed) + (path[-1] == "scale")
        tensors[name] = huggingface.convert(path, array)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write(folder, "config.json", families.to_config(SIZES))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = template("[CLS]", "[SEP]", tokenizer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 40}
    write(folder, "tokenizer_config.json", settings | names)
    write(folder, "sentence_bert_config.json", {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    })  # fmt: skip
    write(folder, "1_Pooling/config.json", {"embedding_dimension": 16, "pooling_mode": "mean", "include_prompt": True})
    set_modules(("", "Transformer"), ("1_Pooling", "Pooling"))(folder)
    prompts = {"prompts": {"query": "", "document": ""}, "default_prompt_name": None}
    write(folder, "config_sentence_transformers.json",
          {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", **prompts})  # fmt: skip


def template(first: str, last: str, tokenizer: Tokenizer) -> Any:
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    single = f"{first} $A {last}"
    return processors.TemplateProcessing(single=single, pair=f"{single} $B {last}", special_tokens=ids)


# ---- changes ---------------------------------------------------------------------------------------------------------


def both(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def put(name: str, without: str = "", **values: Any) -> Change:
    """Set keys of a JSON file, and remove those `without` names."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        write(folder, name, {k: v for k, v in content.items() if k not in without.split()} | values)

    return change


def config(**values: Any) -> Change:
    return put("config.json", **values)


def tokens(without: str = "", **values: Any) -> Change:
    return put("tokenizer_config.json", without, **values)


def sentence(**values: Any) -> Change:
    return put("sentence_bert_config.json", **values)


def pool(without: str = "", **values: Any) -> Change:
    return put("1_Pooling/config.json", without, **values)


def prompts(default: str | None, **texts: str) -> Change:
    return put("config_sentence_transformers.json", prompts=texts, default_prompt_name=default)


def step(**parts: Any) -> Change:
    """Replace steps of tokenizer.json."""
    return put("tokenizer.json", **{name: part and json.loads(part.__getstate__()) for name, part in parts.items()})


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def set_modules(*modules: tuple[str, str]) -> Change:
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    return lambda folder: write(folder, "modules.json", listed)


PIPELINE = (("", "Transformer"), ("1_Pooling", "Pooling"))


def dense(bias: bool = True, **values: Any) -> Change:
    def change(folder: Path) -> None:
        settings = {"in_features": 16, "out_features": 6, "bias": bias}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        write(folder, "2_Dense/config.json", settings | values)
        arrays = {"linear.weight": numbers(6, 16, seed=90)} | ({"linear.bias": numbers(6, seed=91)} if bias else {})
        save_file(arrays, folder / "2_Dense" / "model.safetensors", {"format": "pt"})

    return change


def move_transformer(folder: Path) -> None:
    """As before version 2 of sentence-transformers: the transformer in a folder of its own."""
    (folder / "0_Transformer").mkdir()
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in (*names, "sentence_bert_config.json"):
        shutil.move(folder / name, folder / "0_Transformer" / name)
    set_modules(("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"))(folder)


def rename_tensors(change: Callable[[str], str], dtype: Any = np.float32) -> Change:
    def apply(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        save_file({change(name): array.astype(dtype) for name, array in found.items()}, folder / "model.safetensors",
                  {"format": "pt"})  # fmt: skip

    return apply


def in_parts(folder: Path) -> None:
    """As transformers saves weights beyond a few gigabytes."""
    found = load_file(folder / "model.safetensors")
    names = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(found)}
    for file in {*names.values()}:
        save_file({name: found[name] for name in found if names[name] == file}, folder / file, {"format": "pt"})
    write(folder, "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": names})
    (folder / "model.safetensors").unlink()


def unigram(folder: Path) -> None:
    """The tokenizer of multilingual MiniLM and E5: SentencePiece's pieces."""
    pieces = [
        *["<s>", "<pad>", "</s>", "<unk>", "▁", "▁the", "▁fox", "▁Fox", "▁dog", "▁a", "fox", "dog"],
        *LETTERS,
        "<mask>",
    ]
    scores = [(piece, -float(len(pieces) - i)) for i, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = template("<s>", "</s>", tokenizer)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls": "s", "bos": "s", "sep": "/s", "eos": "/s", "unk": "unk", "pad": "pad", "mask": "mask"}
    special = {f"{key}_token": f"<{name}>" for key, name in names.items()}
    tokens("do_lower_case", tokenizer_class="XLMRobertaTokenizer", **special)(folder)


def bytes_without_padding(folder: Path) -> None:
    """Byte-level BPE without a padding token, which needs one for batches."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:100]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = template("[CLS]", "[SEP]", tokenizer)
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 40,
                                            "pad_token": "[PAD]", "cls_token": "[CLS]"})  # fmt: skip


def token(text: str, i: int, **flags: bool) -> dict[str, Any]:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": text, "id": i, **off, **flags}


def add_to_file(*added: dict[str, Any]) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["added_tokens"] += added
        write(folder, "tokenizer.json", content)

    return change


def decoder(*added: dict[str, Any]) -> Change:
    """`added_tokens_decoder`, as transformers 4 writes it."""
    listed = [*(token(text, i, special=True) for i, text in enumerate(SPECIAL)), *added]
    return tokens(added_tokens_decoder={str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in listed})


FOX, NEW = VOCABULARY.index("fox"), len(VOCABULARY)
STORED = tokens("do_lower_case", tokenizer_class="PreTrainedTokenizerFast")
LOWER = normalizers.BertNormalizer(lowercase=True)
REVERSED = processors.TemplateProcessing(single="[SEP] $A [CLS]", special_tokens=[("[SEP]", 3), ("[CLS]", 2)])

VARIANTS: dict[str, Change] = {
    "as saved": both(),
    # lengths
    "model_max_length": tokens(model_max_length=12),
    "model_max_length of no limit": tokens(model_max_length=int(1e30)),
    "max_len": tokens("model_max_length", max_len=11),
    "max_seq_length": both(tokens(model_max_length=20), sentence(max_seq_length=9)),
    "no length at all": both(tokens("model_max_length")),
    "truncation_side": tokens(model_max_length=12, truncation_side="left"),
    "truncation in tokenizer.json": both(tokens(model_max_length=12), put("tokenizer.json", truncation={
        "direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0})),
    "padding in tokenizer.json": put("tokenizer.json", padding={
        "strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]"}),
    # the normalizer
    "do_lower_case": tokens(do_lower_case=True),
    "do_lower_case of BertTokenizerFast": tokens(do_lower_case=True, tokenizer_class="BertTokenizerFast"),
    "do_lower_case false": both(step(normalizer=LOWER)),
    "no do_lower_case": tokens("do_lower_case"),
    "strip_accents": tokens(strip_accents=True),
    "strip_accents false": tokens(strip_accents=False, do_lower_case=True),
    "tokenize_chinese_chars": tokens(tokenize_chinese_chars=False),
    "no tokenizer_config.json": remove("tokenizer_config.json"),
    "no tokenizer_class": tokens("tokenizer_class", do_lower_case=True),
    "tokenizer_class in config.json": both(tokens("tokenizer_class", do_lower_case=True),
                                           config(tokenizer_class="PreTrainedTokenizerFast")),
    "a tokenizer as stored": both(STORED, tokens(do_lower_case=True, strip_accents=True)),
    "TokenizersBackend": both(STORED, tokens(tokenizer_class="TokenizersBackend"), step(normalizer=LOWER)),
    "do_lower_case of sentence-transformers": both(STORED, sentence(do_lower_case=True)),
    "do_lower_case over a sequence": both(STORED, sentence(do_lower_case=True), step(
        normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]))),
    "do_lower_case without a normalizer": both(STORED, sentence(do_lower_case=True), step(normalizer=None)),
    # the other steps
    "add_bos_token": both(STORED, tokens(add_bos_token=True, add_eos_token=False)),
    "a template of chats, where texts are read": tokens(chat_template="{{ x }}"),
    "a template as stored": both(STORED, step(post_processor=REVERSED)),
    "a template of BERT's own": step(post_processor=REVERSED),
    "splits of BERT's own": step(pre_tokenizer=pre_tokenizers.WhitespaceSplit()),
    "splits as stored": both(STORED, step(pre_tokenizer=pre_tokenizers.WhitespaceSplit())),
    "cls_token": tokens(cls_token="[MASK]"),
    "cls_token with flags": tokens(cls_token=token("[MASK]", 4, special=True) | {"__type": "AddedToken"}),
    "special_tokens_map.json": put("special_tokens_map.json", cls_token="[MASK]", sep_token="[PAD]"),
    "unk_token": tokens(unk_token="[MASK]"),
    "an added token": add_to_file(token("x", VOCABULARY.index("x"), single_word=False, normalized=True)),
    "an added token at the end": add_to_file(token("ll", NEW, normalized=False)),
    "an added token as stored": both(STORED, add_to_file(token("ll", NEW, normalized=True))),
    "added_tokens_decoder": both(decoder(token("ll", NEW)), add_to_file(token("ll", NEW))),
    "added_tokens_decoder alone counts": both(decoder(), add_to_file(token("ox", VOCABULARY.index("x")))),
    "added_tokens_decoder as stored": both(STORED, decoder(token("fox", FOX))),
    "additional_special_tokens": tokens(additional_special_tokens=["fox"]),
    "extra_special_tokens": both(STORED, tokens(extra_special_tokens=["fox"])),
    "XLMRobertaTokenizer": unigram,
    "XLMRobertaTokenizer without a first blank": both(unigram, tokens(add_prefix_space=False)),
    "bytes": bytes_without_padding,
    # modules
    "cls": pool(pooling_mode="cls"),
    "a flag for lasttoken": pool("pooling_mode", pooling_mode_lasttoken=True),
    "max": pool(pooling_mode="max"),
    "weightedmean": pool(pooling_mode="weightedmean"),
    "a flag for cls": pool("pooling_mode", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False),
    "a list of modes": pool(pooling_mode=["cls"]),
    "the mode counts": pool(pooling_mode="cls", pooling_mode_mean_tokens=True),
    "pooling in another folder": both(put("pooling/config.json", pooling_mode="cls", embedding_dimension=16),
                                      set_modules(("", "Transformer"), ("pooling", "Pooling"))),
    "no modules.json": remove("modules.json"),
    "Normalize": set_modules(*PIPELINE, ("2_Normalize", "Normalize")),
    "Dense": both(dense(), set_modules(*PIPELINE, ("2_Dense", "Dense"))),
    "Dense without bias, Normalize": both(dense(bias=False), set_modules(*PIPELINE, ("2_Dense", "Dense"),
                                                                         ("3_Normalize", "Normalize"))),
    "a folder for the transformer": both(tokens(model_max_length=9), move_transformer),
    # prompts
    "default_prompt_name": prompts("query", query="query: ", document=""),
    "a prompt that runs into the text": prompts("q", q="fo"),
    "an empty default prompt": prompts("document", query="query: ", document=""),
    "prompts that are not the default": prompts(None, query="query: "),
    "prompts of queries and documents": prompts(None, query="query: ", document="the dog: "),
    "prompts of all uses": prompts("q", q="a fox: ", query="query: ", document=""),
    "a prompt and cls": both(prompts("q", q="query: "), pool(pooling_mode="cls")),
    "include_prompt without a prompt": pool(include_prompt=False),
    # config.json and the tensors
    "layer_norm_eps": config(layer_norm_eps=0.1),
    "harmless keys": both(config(hidden_dropout_prob=0.5, use_cache=False, pad_token_id=3, torch_dtype="float32"),
                          tokens(clean_up_tokenization_spaces=True, max_length=7, stride=2, pad_to_multiple_of=8),
                          sentence(query_length=5, unpad_inputs=False),
                          put("config_sentence_transformers.json", similarity_fn_name="dot", truncate_dim=None)),
    "weights in parts": in_parts,
    "names of other versions": rename_tensors(
        lambda name: "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta")),
}  # fmt: skip

PROMPTED = [name for name in VARIANTS if name.startswith("prompts of")]  # with vectors of queries and documents too

# What would change a vector and is not supported: the change, and words of the sentence that refuses it.
UNPINNED = put("sentence_bert_config.json", "modality_config module_output_name")
REFUSED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "hidden_act": (config(hidden_act="relu"), ('hidden_act="relu"', 'allowed: "gelu"')),
    "position_embedding_type": (config(position_embedding_type="relative_key"), ('"relative_key"',)),
    "is_decoder": (config(is_decoder=True), ("is_decoder=true",)),
    "pruned_heads": (config(pruned_heads={"0": [1]}), ("pruned_heads=",)),
    "quantization_config": (config(quantization_config={"bits": 8}), ("quantization_config=",)),
    "an adapter": (put("adapter_config.json", r=1), ("adapter_config.json is not supported",)),
    "padding_side": (tokens(padding_side="left"), ('padding_side="left"', '"right"')),
    "padding on the left in tokenizer.json": (put("tokenizer.json", padding={
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]"}), ("tokenizer.json: padding on the left",)),
    "another tokenizer": (tokens(tokenizer_class="GPT2Tokenizer"), ('tokenizer_class="GPT2Tokenizer"', "as it stands")),
    "the tokenizer of another vocabulary": (
        tokens(tokenizer_class="T5Tokenizer"), ('tokenizer_class="T5Tokenizer" is for Unigram', "holds WordPiece")),
    "split_special_tokens": (tokens(split_special_tokens=True), ("split_special_tokens=true",)),
    "chat_template": (both(tokens(chat_template="{{ x }}"), UNPINNED), ("chat_template=", "modality_config=")),
    "chat_template.jinja": (both(put("chat_template.jinja"), UNPINNED), (
        "chat_template.jinja is not supported", "modality_config=")),
    "a special token that is not there": (tokens(cls_token="<s>"), ('"<s>" is not in tokenizer.json',)),
    "an added token that is not there": (decoder(token("ll", NEW)), ("added_tokens_decoder", str(NEW))),
    "a new special token": (tokens(additional_special_tokens=["<q>"]), ('additional_special_tokens has "<q>"',)),
    "do_lower_case of another type": (tokens(do_lower_case="yes"), ('do_lower_case="yes"', "true or false")),
    "model_max_length 0": (tokens(model_max_length=0), ("model_max_length=0",)),
    "model_max_length of the special tokens": (tokens(model_max_length=2), ("max_length=2", "at least 3")),
    "truncation_side": (tokens(truncation_side="middle"), ('truncation_side="middle"', "left or right")),
    "transformer_task": (sentence(transformer_task="fill-mask"), ('transformer_task="fill-mask"',)),
    "processing_kwargs": (sentence(processing_kwargs={"text": {"max_length": 4}}), ("processing_kwargs=",)),
    "processor_kwargs": (sentence(processor_kwargs={"model_max_length": 4}), ("processor_kwargs=",)),
    "tokenizer_name_or_path": (sentence(tokenizer_name_or_path="other"), ("tokenizer_name_or_path=",)),
    "mean_sqrt_len_tokens": (pool(pooling_mode="mean_sqrt_len_tokens"),
                             ("pooling mean_sqrt_len_tokens", "mean, cls, max")),
    "two modes": (pool(pooling_mode=["cls", "mean"]), ("pooling cls + mean",)),
    "include_prompt with a prompt": (both(prompts("q", q="query: "), pool(include_prompt=False)),
                                     ("data.prompts", "include_prompt=false")),
    "a prompt longer than texts may be": (both(tokens(model_max_length=6), prompts("q", q="the quick fox " * 3)),
                                          ('data.prompts: q="the quick fox the', "encoder.max_length=6")),
    "tanh after Dense": (both(dense(activation_function="torch.nn.modules.activation.Tanh"),
                              set_modules(*PIPELINE, ("2_Dense", "Dense"))), ("activation_function=", "Identity")),
    "Dense of other sizes": (both(dense(in_features=8), set_modules(*PIPELINE, ("2_Dense", "Dense"))),
                             ("in_features=8",)),
    "use_residual": (both(dense(use_residual=True), set_modules(*PIPELINE, ("2_Dense", "Dense"))),
                     ("use_residual=true",)),
    "Normalize before Dense": (both(dense(), set_modules(*PIPELINE, ("", "Normalize"), ("2_Dense", "Dense"))),
                               ("modules.json", "then Dense or not, then Normalize or not")),
    "a router": (set_modules(("", "Router"), ("1_Pooling", "Pooling")), ("module Router",)),
    "Asym": (set_modules(*PIPELINE, ("2_Asym", "Asym")), ("module Asym",)),
    "no transformer": (set_modules(("1_Pooling", "Pooling")), ("modules.json: Pooling is not", "Transformer")),
    "a module elsewhere": (set_modules(("..", "Transformer"), ("1_Pooling", "Pooling")), ('path=".."',)),
    "a default prompt that is not there": (prompts("other", query=""), ('default_prompt_name="other"', "query")),
    "prompts of another type": (put("config_sentence_transformers.json", prompts={"q": 1}), ("prompts=",)),
    "a sparse encoder": (put("config_sentence_transformers.json", model_type="SparseEncoder"), ('"SparseEncoder"',)),
    "an index of weights that are not there": (
        both(remove("model.safetensors"), put("model.safetensors.index.json", weight_map={"a": "model-1.safetensors"})),
        ("model-1.safetensors is missing",)),
    "an index of weights elsewhere": (
        both(remove("model.safetensors"), put("model.safetensors.index.json", weight_map={"a": "../x.safetensors"})),
        ("index.json: weight_map is not allowed",)),
    "an index of no weights": (both(remove("model.safetensors"), put("model.safetensors.index.json", weight_map=[])),
                               ("index.json: weight_map is not allowed",)),
    "weights of torch": (both(remove("model.safetensors"), put("pytorch_model.bin", x=1)),
                         ("pytorch_model.bin is not read",)),
    "names of a whole pipeline": (rename_tensors(lambda name: f"0.auto_model.{name}"), ("has no tensor embeddings.",)),
    "SentencePiece alone": (both(remove("tokenizer.json"), put("sentencepiece.bpe.model", x=1)),
                            ("tokenizer.json is missing", "sentencepiece.bpe.model is not read")),
}  # fmt: skip


def width(folder: Path) -> int:
    """Of the embeddings of a folder."""
    described = huggingface.describe(folder)
    return described.projected or described.architecture.hidden

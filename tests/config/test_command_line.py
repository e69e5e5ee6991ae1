"""Words of the command line reach the configuration as they were typed."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mrl_jax.config import from_command_line
from mrl_jax.config.command_line import TEXT_KEYS, quote, repeated_key

FILES = ["data=files", "data.train=a.jsonl", "data.test=b.jsonl"]
PATHS = [
    *("step=10-loss=0.1.csv", "a,b.jsonl", "a b.jsonl", "#1.jsonl", "a[b].jsonl", "[ab].jsonl", "f(x)", "{a}", "a:b"),
    *("a'b", "'", 'a"b', "a$b", "C:\\data\\a.csv", "C:\\data\\", "a\\'b", "\\\\'", "a@b%c", "a!b&c;d", "süß.jsonl"),
    *("日本語.jsonl", "true", "1", "1.50", "001", "1e3", "2024-01-01", "a~b", "*.jsonl", ""),
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_means_what_the_user_typed(path: str) -> None:
    assert from_command_line([*FILES, f"data.train={path}"]).data.train == path


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=25)
@given(path=text.filter(lambda path: path != "null" and path[:1] + path[-1:] not in ("''", '""') and path[:2] != "~/"))
@example("\n'\\")
def test_so_does_any_text(path: str) -> None:
    if "${" not in path:
        assert from_command_line([*FILES, f"data.test={path}"]).data.test == path


def test_null_quotes_interpolations_and_the_home_folder_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    words = [*FILES, "data.validation=null", "data.train='my file'", "data.test=${oc.env:HOME}/a", "results_dir=~/a b"]
    config = from_command_line(words)
    assert (config.data.validation, config.data.train) == (None, "my file")
    assert (config.data.test, config.results_dir) == ("/home/me/a", str(Path("/home/me/a b")))


def test_only_keys_of_text_are_quoted() -> None:
    for word in ("seeds=3", "nesting_dims=[1,2]", "loss.name=cosent", "+experiment=smoke", "--multirun", "data=files"):
        assert quote(word) == word
    assert {"data.train", "data.path", "results_dir", "encoder.weights", "encoder.tokenizer", "loss.teacher"} <= {
        *TEXT_KEYS
    }
    assert quote("loss.teacher=a=b #1.npz") == "loss.teacher='a=b #1.npz'"


@pytest.mark.parametrize(
    ("word", "twice"),
    [
        ("data.prompts={query:a,query:b}", "query"),
        ("data.prompts={query: a, document: b}", None),
        ("data.prompts={query: 'x:{y,', document: \"query:}\"}", None),
        ("data.sources={a:{train:x,test:y},b:{train:x}}", None),
        ("data.sources={a:{train:http://x},b:{path:http://y}}", None),
        ("data.sources={a:{loss:{name:x,name:y}}}", "name"),
        ("data.sources={a:[1,2],b:{x:1},a:3}", "a"),
        ("nesting_dims=[1,2]", None),
        ("name=a:b,c:d", None),
        ("data.path={a:x,a:y}", None),
    ],
)
def test_a_name_that_stands_twice_in_a_mapping_is_found(word: str, twice: str | None) -> None:
    assert repeated_key(word) == twice

"""Texts that hold nothing that the encoder knows: counted, and refused where they are most; scripts without spaces."""

import json
from pathlib import Path

import numpy as np
import pytest

from mrl_jax import train
from mrl_jax.runs import read_rows

FAST = ["data=files", "recipe=none", "name=made",
        "run=one", "width=16", "nesting_dims=[4,16]", "arms=[mrl]", "trainer.steps=30",
        "trainer.batch_size=32", "optimizer.learning_rate=3e-2", "evaluation.refit=null", "evaluation.neighbours=false",
        "evaluation.interpolated=false"]  # fmt: skip


def files(folder: Path, **parts: list[tuple[str, str]]) -> list[str]:
    """Write the parts and return the keys that name them."""
    for part, rows in parts.items():
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [*(f"data.{part}={folder / f'{part}.jsonl'}" for part in parts), f"results_dir={folder}"]


def strange(count: int, start: int = 0) -> list[tuple[str, str]]:
    """Texts without a word in common."""
    return [(f"x{i} y{i}", "ab"[i % 2]) for i in range(start, start + count)]


def plain(count: int) -> list[tuple[str, str]]:
    return [(f"{('goal', 'orbit')[i % 2]} word{i % 5}", "ab"[i % 2]) for i in range(count)]


def test_most_training_texts_without_a_known_word_are_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = files(tmp_path, train=[*plain(8), *strange(60)], test=plain(10), validation=plain(10))
    assert train.main([*FAST, *parts]) == 2
    assert capsys.readouterr().err == (
        "error: 60 of 68 train texts hold no word or token that encoder=bag knows, so it would learn nothing; "
        "use encoder=transformer, which reads parts of words, or a bag of runs of characters: encoder.units=characters "
        "encoder.ngrams=5\n"
    )
    assert not (tmp_path / "made").exists()


def test_with_a_vocabulary_of_words_that_occur_once_the_validation_texts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = files(tmp_path, train=strange(40), test=strange(10, 40), validation=strange(10, 50))
    assert train.main([*FAST, *parts, "encoder.min_documents=1"]) == 2
    assert "error: 10 of 10 validation texts hold no word" in capsys.readouterr().err
    assert train.main([*FAST, *parts]) == 2
    assert "no word occurs in encoder.min_documents=2 of the 40 training texts" in capsys.readouterr().err


def test_some_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = files(tmp_path, train=[*plain(60), *strange(5)], test=strange(10, 90), validation=plain(10))
    assert train.main([*FAST, *parts, "trainer.steps=1"]) == 0
    said = capsys.readouterr().err
    assert "5 of 65 train texts hold no word or token that encoder=bag knows: nothing tells them apart\n" in said
    assert "10 of 10 test texts hold" in said
    assert "validation texts hold" not in said


TOPICS = {  # words of two topics, and words of both, of a script without spaces
    "Chinese": (
        "足球 比赛 进球 球队 冠军 教练",
        "卫星 轨道 火箭 月球 宇航 太空",
        "今天 我们 看到 一个 新的 报道",
    ),
    "Japanese": ("試合 選手 ゴール 監督", "衛星 軌道 ロケット 宇宙", "今日 私は 見た とても 新しい です"),
    "Thai": ("ฟุตบอล ประตู นักเตะ แชมป์", "ดาวเทียม วงโคจร จรวด อวกาศ", "วันนี้ เรา เห็น ข่าว ใหม่ มาก"),
}


@pytest.mark.parametrize("script", TOPICS)
def test_texts_without_spaces_are_learnt(script: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    *topics, common = (words.split() for words in TOPICS[script])

    def rows(count: int) -> list[tuple[str, str]]:
        made = []
        for i in range(count):
            words = [*rng.choice(topics[i % 2], 2), *rng.choice(common, 5)]
            made.append(("".join(rng.permutation(words)), "ab"[i % 2]))
        return made

    assert train.main([*FAST, *files(tmp_path, train=rows(300), test=rows(100))]) == 0
    values = {(r.dim, r.split, r.metric): r.value for r in read_rows(tmp_path / "made" / "one" / "evaluation.csv")}
    assert values[16, "test", "linear_top1"] >= 0.95


def test_one_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(text, "same") for text, _ in plain(20)]
    assert train.main([*FAST, *files(tmp_path, train=rows, test=rows, validation=rows)]) == 2
    assert "all labels of the training data are 'same'; at least 2 are needed" in capsys.readouterr().err

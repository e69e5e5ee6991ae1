"""A bot that answers questions from a list by retrieval, or says that it does not know.

    python experiments/faq_bot/bot.py data FOLDER                      # write the list and the questions
    python experiments/faq_bot/bot.py measure RUN FOLDER --out FILE    # how often it answers, and how often wrongly
    python experiments/faq_bot/bot.py ask RUN FOLDER "walking pneumonia" [--dim 64] [--wrong 0.3]

The list is the diagnoses of ICD-10-CM that have other names, a question is such a name, and its answer the diagnosis. A
fifth of the sections of the classification, by a hash, are not on the list, and no question about them is trained on:
to these the answer is that it does not know. Of the questions about the others, three in five are for training; of all
that are left one half is held out to certify a threshold with (`mrl_jax.search.abstain`), and the other half is the
test. What has to reach the threshold is the cosine of the first result and its lead over the second.
"""

import argparse
import csv
import hashlib
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import mrl_jax
from mrl_jax.search import abstain, exact
from mrl_jax.search.layout import lay_out

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from own_data import ICD, member

DIMS = (16, 32, 64, 128, 256)
WRONG, DELTA = (0.1, 0.2, 0.3), 0.05
DIVISIONS = 500  # of the questions into held-out and test, to see how often the bound is broken


class Question(NamedTuple):
    """A question, and the code of the diagnosis that it asks for."""

    text: str
    code: str


def share(text: str) -> float:
    """A number from 0 to 1 that belongs to a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def write_data(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, str] = {}
    parts: dict[str, list[Question]] = {"train": [], "held_out": [], "test": []}
    seen = set()
    diagnoses = (
        (section.get("id", ""), diagnosis)
        for section in ElementTree.parse(member(ICD)).getroot().iter("section")
        for diagnosis in section.iter("diag")
    )
    for section, diagnosis in diagnoses:
        code, answer = diagnosis.findtext("name", ""), diagnosis.findtext("desc", "")
        names = {" ".join((note.text or "").split()) for note in diagnosis.iterfind("inclusionTerm/note")}
        names = {name for name in names - seen if name and name.lower() != answer.lower()}
        seen |= names
        if not names or answer in entries.values():
            continue
        on_list = share(section) >= 0.2
        if on_list:
            entries[code] = answer
        for name in sorted(names):
            if on_list and share(name) < 0.6:
                parts["train"].append(Question(name, code))
            else:
                parts["held_out" if share(f"half {name}") < 0.5 else "test"].append(Question(name, code))
    rows = {name: [{"text": q.text, "code": q.code} for q in questions] for name, questions in parts.items()}
    rows["list"] = [{"_id": code, "text": answer} for code, answer in entries.items()]
    for name in ("train", "test"):
        pairs = [{"anchor": q.text, "positive": entries[q.code]} for q in parts[name] if q.code in entries]
        rows[f"{name}_pairs"] = pairs
    for name, lines in rows.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(", ".join(f"{name}: {len(lines):,}" for name, lines in rows.items()))


def read(folder: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def first_results(
    model: mrl_jax.EmbeddingModel, texts: Sequence[str], answers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The row of the best entry of the list for each text, at the width of `answers`, and how sure it is."""
    dim = answers.shape[1]
    found, _ = exact.search(lay_out(answers, (dim,)), model.encode(texts, dim, prompt="query"), 2)
    return found.rows[:, 0], 2 * found.scores[:, 0] - found.scores[:, 1]


def measure(run: str, folder: Path, out: Path) -> None:
    model, entries = mrl_jax.load(run), read(folder, "list")
    codes = {entry["_id"]: row for row, entry in enumerate(entries)}
    questions = read(folder, "held_out") + read(folder, "test")
    held_out = len(read(folder, "held_out"))
    wanted = np.array([codes.get(q["code"], -1) for q in questions])
    texts = [entry["text"] for entry in entries]
    lines = []
    for dim in DIMS:
        answers = model.encode(texts, dim, prompt="document")
        first, scores = first_results(model, [q["text"] for q in questions], answers)
        right = first == wanted
        on_list = wanted >= 0
        for wrong in WRONG:
            line = {"dim": dim, "wrong_allowed": wrong, "first_is_right": right[held_out:][on_list[held_out:]].mean()}
            threshold = abstain.certify(scores[:held_out], right[:held_out], wrong, DELTA)
            line |= outcome(scores[held_out:], right[held_out:], on_list[held_out:], threshold.score)
            line["score"] = threshold.score
            broken = 0
            for seed in range(DIVISIONS):
                order = np.random.default_rng(seed).permutation(len(questions))
                one, other = order[:held_out], order[held_out:]
                again = abstain.certify(scores[one], right[one], wrong, DELTA, seed)
                broken += outcome(scores[other], right[other], on_list[other], again.score)["wrong"] > wrong
            lines.append(line | {"broken": broken / DIVISIONS})
            print({key: round(float(value), 3) for key, value in lines[-1].items()}, flush=True)
    with out.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, lines[0], lineterminator="\n")
        table.writeheader()
        table.writerows(
            {key: f"{value:.4f}" if key != "dim" else value for key, value in line.items()} for line in lines
        )


def outcome(scores: np.ndarray, right: np.ndarray, on_list: np.ndarray, threshold: float) -> dict[str, float]:
    """Shares of the questions that are answered, of wrong answers among those, of the questions with an answer on the
    list that get it, and of those without one that are refused."""
    answered = scores >= threshold
    return {
        "answered": answered.mean(),
        "wrong": (answered & ~right).sum() / max(answered.sum(), 1),
        "got_their_answer": (answered & right).sum() / max(on_list.sum(), 1),
        "rightly_refused": (~answered & ~on_list).sum() / max((~on_list).sum(), 1),
    }


def ask(run: str, folder: Path, text: str, dim: int, wrong: float) -> None:
    model, entries, held_out = mrl_jax.load(run), read(folder, "list"), read(folder, "held_out")
    answers = model.encode([entry["text"] for entry in entries], dim, prompt="document")
    first, scores = first_results(model, [text, *(q["text"] for q in held_out)], answers)
    right = np.array([entries[row]["_id"] == q["code"] for row, q in zip(first[1:], held_out, strict=True)])
    threshold = abstain.certify(scores[1:], right, wrong, DELTA)
    best, score = entries[first[0]], scores[0]
    if score >= threshold.score:
        print(f"{best['_id']}  {best['text']}  ({score:.3f})")
    else:
        print(f"I do not know: the nearest is {best['_id']}  {best['text']}, {score:.3f} < {threshold.score:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data").add_argument("folder", type=Path)
    for name in ("measure", "ask"):
        command = commands.add_parser(name)
        command.add_argument("run")
        command.add_argument("folder", type=Path)
        if name == "measure":
            command.add_argument("--out", type=Path, required=True)
        else:
            command.add_argument("text")
            command.add_argument("--dim", type=int, default=64)
            command.add_argument("--wrong", type=float, default=0.3, help="share of wrong answers that is allowed")
    options = parser.parse_args()
    if options.command == "data":
        write_data(options.folder)
    elif options.command == "measure":
        measure(options.run, options.folder, options.out)
    else:
        ask(options.run, options.folder, options.text, options.dim, options.wrong)


if __name__ == "__main__":
    main()

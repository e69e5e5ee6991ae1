"""Ways to damage a file: bits, ends and pieces of any content; values, keys and lines of JSON and text."""

import json
import random
from collections.abc import Iterator
from typing import Any

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, -1e308, float("nan"), float("inf")),
    *("", "\0", "\ud800", "a" * 100_000, "$\\x$", "${oc.env:HOME}", "${now:}", "</script>", "١", "9" * 5000, "nan"),
    *([], {}, [None], ["a", "a"], {"a": {"b": 1}}, [[1], [2, 3]], DEEP),
)
PIECES = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\r\n", b"\n", b'"', b"\\", b",", b"\t", b"$", b"{"),
    *(b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 16, b"9" * 5000, b"-1", b"NaN", b"1e999", b"[", b"[" * 3000),
    *(b"${", b"\\ud800"),
    *(b"!!python/object/apply:os.system ['x']", b"&a [*a]", b"~", b"/", b"..", b"a" * 70_000),
)  # fmt: skip


def damage(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to three changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(CHANGES)(content, rng)
    return content


def flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randint(0, len(content))]


def drop(content: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(content))
    return content[:start] + content[start + rng.choice((1, 2, 4, 16, 200)) :]


def repeat(content: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(content))
    piece = content[start : start + rng.choice((1, 4, 16, 200))]
    return content[:start] + piece * rng.choice((1, 1, 2, 50)) + content[start:]


def insert(content: bytes, rng: random.Random) -> bytes:
    at, piece = rng.randint(0, len(content)), rng.choice(PIECES)
    return content[:at] + piece + content[at + rng.choice((0, 0, len(piece))) :]


def line_ends(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"")) + content.replace(
        b"\n", rng.choice((b"\r\n", b"\r", b"\n\n"))
    )


def in_json(content: bytes, rng: random.Random) -> bytes:
    """A value, key or line of JSON changed; other content comes back as it is."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines)) if lines else 0
    for start, stop in ((0, len(lines)), (at, at + 1)):
        try:
            tree = json.loads(b"".join(lines[start:stop]))
        except (ValueError, RecursionError):
            continue
        if isinstance(tree, dict | list):
            nodes = list(containers(tree))
            text = json.dumps(changed(tree, rng.choice(nodes), rng))
            if rng.random() < 0.1:  # a key twice
                text = text.replace('{"', '{"a": 1, "a": 2, "', 1)
            end = b"\n" if stop - start == 1 else b""
            return b"".join([*lines[:start], text.encode() + end, *lines[stop:]])
    return content


def containers(node: Any) -> Iterator[Any]:
    """The objects and lists of a tree."""
    if isinstance(node, dict | list):
        yield node
        for child in node.values() if isinstance(node, dict) else node:
            yield from containers(child)


def changed(tree: Any, node: Any, rng: random.Random) -> Any:
    """The tree with one entry of `node` replaced, removed, renamed or added."""
    places = list(node) if isinstance(node, dict) else list(range(len(node)))
    value = rng.choice(VALUES)
    if not places:
        return value if node is tree else tree
    place = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del node[place]
        case 1 if isinstance(node, dict):
            node[rng.choice(("", "a", "\0", "../x", "__class__", place + "x"))] = node.pop(place)
        case 1:
            node.append(value)
        case _:
            node[place] = value
    return tree


def in_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines of text dropped, doubled or swapped, or a number or word in one of them replaced."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines.insert(rng.randrange(len(lines)), lines.pop(at))
        case _:
            value = rng.choice(VALUES)
            text = value if isinstance(value, str) else json.dumps(value)
            words = lines[at].split(b" ")
            words[rng.randrange(len(words))] = text.encode(errors="surrogatepass")
            lines[at] = b" ".join(words) + b"\n"
    return b"".join(lines)


CHANGES = (flip, flip, cut, drop, repeat, insert, insert, line_ends, in_json, in_json, in_json, in_json, in_lines)

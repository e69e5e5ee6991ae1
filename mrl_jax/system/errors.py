"""The one exception that a user's own mistake raises: a sentence, never a traceback."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import field
from difflib import get_close_matches
from typing import Any

MAX_MESSAGE_CHARACTERS = 1000  # per message, which may quote a value of any length from a file


class UserError(Exception):
    """Bad input, configuration or file. The message names the key, the value and what is allowed.

    It is shown on one line: unprintable characters, which a value from a file may contain, are escaped, and the middle
    of a long message is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        maximum = MAX_MESSAGE_CHARACTERS
        text = text if len(text) <= maximum else f"{text[: maximum // 2]} … {text[-maximum // 4 :]}"
        return printable(text)


@contextmanager
def within(place: str) -> Iterator[None]:
    """Let a `UserError` say where it arose: at `place`, a section of the configuration."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error.args[0]}") from None


def printable(text: str) -> str:
    """A text that comes from a file, on one line: characters that could steer a terminal are escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def one_of(key: str, value: object, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`, else raise a `UserError` with the nearest match."""
    names = list(allowed)
    if value in names:
        return str(value)
    raise UserError(f"{key}={value} is unknown{nearest(str(value), names)}; allowed: {', '.join(names)}")


def nearest(value: str, names: Iterable[str]) -> str:
    """The hint ` (did you mean …?)` for a typo, or an empty string when no name is close."""
    match = get_close_matches(value, list(names), n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def limited(default: Any, allowed: str, test: Callable[[Any], bool]) -> Any:
    """A field of a configuration dataclass with a restricted range: `config.build` rejects values that fail `test`.

    Args:
        default: the default value.
        allowed: what is allowed, worded to end the sentence "key=value is not allowed; …".
        test: predicate on a value of the field's type. None is not tested: it is valid wherever the type allows it.
    """
    return field(default=default, metadata={"allowed": allowed, "test": test})


def at_least(default: float, smallest: float) -> Any:
    """A field for numbers of `smallest` or more."""
    return limited(default, f"at least {smallest}", lambda value: value >= smallest)


def share(default: float, allowed: str = "0 ≤ value < 1") -> Any:
    """A field for a share in [0, 1)."""
    return limited(default, allowed, lambda value: 0 <= value < 1)

"""The one exception that a user's own mistake raises: a sentence, never a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1000  # signs of a message; a file may put a book where a name was expected


class UserError(Exception):
    """Bad input, configuration or file. The message names the key, the value and what is allowed.

    It is shown on one line, with escapes for what a file may hold to confuse a terminal, and its middle left out when
    it is too long.
    """

    def __str__(self) -> str:
        text = super().__str__()
        text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 4 :]}"
        return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def one_of(key: str, value: object, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of `allowed`, else raise a `UserError` with the nearest match."""
    names = list(allowed)
    if value in names:
        return str(value)
    raise UserError(f"{key}={value} is unknown{nearest(str(value), names)}; allowed: {', '.join(names)}")


def nearest(value: str, names: Iterable[str]) -> str:
    """The hint ` (did you mean …?)` for a typo, or nothing when no name is close."""
    match = get_close_matches(value, list(names), n=1)
    return f" (did you mean {match[0]}?)" if match else ""

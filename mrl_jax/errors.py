"""The one exception that a user's own mistake raises: a sentence, never a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input, configuration or file. The message names the key, the value and what is allowed."""


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

"""The options of `python -m mrl_jax.search serve`, and what is checked of them. Needs nothing of the extra."""

import argparse
import contextlib
import ipaddress
import os
import re
from typing import NamedTuple

from mrl_jax.system import console
from mrl_jax.system.errors import UserError

TOKEN = "MRL_JAX_TOKEN"
MIN_TOKEN_CHARACTERS = 8


class Limits(NamedTuple):
    """What one request may cost."""

    max_body: int = 4 << 20  # bytes
    max_texts: int = 256
    max_characters: int = 32_768  # of a text
    timeout: float = 30  # seconds


def add(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    limits = Limits()
    parser.add_argument("index")
    parser.add_argument("--host", default="127.0.0.1", help="any other than this machine's own wants --token")
    parser.add_argument("--port", type=port_number, default=8000, help="0 for a free one")
    parser.add_argument("--token", help=f"that clients have to give; better in the environment, as {TOKEN}")
    parser.add_argument(
        "--write", action="store_true", help="let clients add and delete documents; nobody else can then"
    )
    parser.add_argument("--run", help="where the model's run is now, if it was moved")
    parser.add_argument("--pictures", metavar="DIR", help="where the pictures are now, if they were moved")
    parser.add_argument("--max-wait-ms", type=milliseconds, default=5.0, help="that a text waits for others to join it")
    parser.add_argument("--max-batch", type=console.positive, default=64, help="texts that are answered together")
    parser.add_argument("--max-waiting", type=console.positive, default=1024, help="texts in the queue; then 503")
    parser.add_argument("--max-body", type=console.positive, default=limits.max_body, help="bytes of a request")
    parser.add_argument("--max-texts", type=console.positive, default=limits.max_texts, help="per request")
    parser.add_argument("--max-characters", type=console.positive, default=limits.max_characters, help="per text")
    parser.add_argument(
        "--timeout", type=console.positive, default=limits.timeout, help="seconds per request; then 504"
    )


def port_number(word: str) -> int:
    if not word.isdecimal() or len(word) > 5 or int(word) > 65535:
        raise argparse.ArgumentTypeError(f"{word} is not allowed; it must be a whole number of 0…65535")
    return int(word)


def milliseconds(word: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (number := float(word)) < 1e6:
            return number
    raise argparse.ArgumentTypeError(f"{word} is not allowed; it must be a number of at least 0")


def token_of(options: argparse.Namespace) -> str | None:
    """The token that clients have to give; None for a service that only this machine reaches."""
    token: str | None = options.token if options.token is not None else os.environ.get(TOKEN)
    if token is not None and not re.fullmatch(rf"[!-~]{{{MIN_TOKEN_CHARACTERS},}}", token):
        raise UserError(f"--token (or {TOKEN}) must be {MIN_TOKEN_CHARACTERS} or more visible ASCII characters")
    if token is None and not is_loopback(options.host):
        raise UserError(f"--host={options.host} is open to other machines; give --token or set {TOKEN}")
    return token


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: by the name localhost, or an address, which no site can have in its name."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""How every example starts: `python examples/<name>.py [arguments] --backend asyncio|trio|uvloop`.

In a program of your own this is `anyio.run(main)` or `anyio.run(main, backend="trio")`.
"""

from argparse import ArgumentParser
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "trio": ("trio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}


def run(main: Callable[..., Awaitable[None]], **defaults: int | str) -> None:
    """Run `main` with the arguments of the command line, until it returns or Ctrl-C is pressed."""
    parser = ArgumentParser()
    for name, default in defaults.items():
        parser.add_argument(name, nargs="?", type=type(default), default=default)
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    arguments = vars(parser.parse_args())
    backend, options = BACKENDS[arguments.pop("backend")]
    with suppress(KeyboardInterrupt):
        anyio.run(partial(main, **arguments), backend=backend, backend_options=options)

"""The libraries that know DEFLATE, RFC 1951: the standard zlib, and `isal` and `zlib-ng` where they are installed.

A library is used through four calls: a new compressor, a new inflater, compress and flush, inflate. Which one is chosen
for which direction is measured: `isal` compresses 2 to 10 times as fast as zlib at the ratio of a low level, but has
nothing like zlib's levels; `zlib-ng` inflates as fast or faster at every size.

``ANYIO_WS_DEFLATE`` in the environment names those that may be used, separated by commas; the standard zlib always may.
"""

import functools
import importlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .frames import Buffer

__all__ = [
    "FULL_FLUSH",
    "SYNC_FLUSH",
    "Backend",
    "Compressor",
    "CompressorPool",
    "Inflater",
    "compress_backend",
    "compressor_pool",
    "inflate_backend",
    "installed_backends",
]

# The same numbers in all of them.
SYNC_FLUSH = zlib.Z_SYNC_FLUSH
FULL_FLUSH = zlib.Z_FULL_FLUSH


class Compressor(Protocol):
    """What zlib.compressobj() returns."""

    def compress(self, data: Buffer, /) -> bytes: ...

    def flush(self, mode: int, /) -> bytes: ...


class Inflater(Protocol):
    """What zlib.decompressobj() returns."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    @property
    def unconsumed_tail(self) -> bytes: ...

    def decompress(self, data: Buffer, max_length: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, eq=False)
class Backend:
    """A library with the interface of the standard zlib.

    Attributes:
        name: what `pip install` calls it, and "zlib".
        error: what it raises for data that is not DEFLATE.
        has_levels: whether it has zlib's levels, 0 to 9.
        default_level: its level where none is asked for.
        fast_limit: bytes that it compresses in about a millisecond up to level 3.
        slow_limit: the same for the higher levels.
    """

    name: str
    error: type[Exception]
    has_levels: bool
    default_level: int
    fast_limit: int
    slow_limit: int
    _compressobj: Callable[[int, int, int, int], Compressor]
    _decompressobj: Callable[[int], Inflater]

    def new_compressor(self, level: int | None, window_bits: int, memory_level: int) -> Compressor:
        """A compressor with an empty window of ``2**window_bits`` bytes, 9 to 15."""
        level = self.default_level if level is None else level
        return self._compressobj(level, zlib.DEFLATED, -window_bits, memory_level)

    def new_inflater(self, window_bits: int) -> Inflater:
        """An inflater with an empty window of ``2**window_bits`` bytes, 8 to 15."""
        return self._decompressobj(-window_bits)

    def compress(self, compressor: Compressor, data: Buffer, mode: int) -> bytes:
        """Compress and flush: what comes out ends with 00 00 ff ff, or is empty if nothing went in.

        Args:
            mode: SYNC_FLUSH, or FULL_FLUSH, after which nothing refers back to what came before.
        """
        head = compressor.compress(data)
        # Up to some kilobytes it has kept everything.
        return head + compressor.flush(mode) if head else compressor.flush(mode)

    def inflate(self, inflater: Inflater, data: Buffer, max_length: int) -> tuple[bytes, bytes, bool]:
        """Inflate to at most this many bytes, 1 or more.

        Returns:
            The bytes; what is left of the data; whether the stream ended, after which a new inflater must go on. If
            there are `max_length` bytes and it did not, there may be more even if no data is left.

        Raises:
            self.error: the data is not DEFLATE, or refers back beyond the window.
        """
        out = inflater.decompress(data, max_length)
        if inflater.eof:
            return out, inflater.unused_data, True
        return out, inflater.unconsumed_tail, False


def _load(name: str, module_name: str, *, has_levels: bool, default_level: int, fast: int, slow: int) -> Backend | None:
    try:
        # Not an import statement: type checkers need not have it.
        module: Any = importlib.import_module(module_name)
    except ImportError:
        return None
    return Backend(name, module.error, has_levels, default_level, fast, slow, module.compressobj, module.decompressobj)


def installed_backends(allowed: str | None) -> dict[str, Backend]:
    """Those that can be imported, by name, the preferred ones to compress with first.

    Args:
        allowed: names separated by commas, or None for all; the standard zlib is always there.
    """
    candidates = (
        ("isal", "isal.isal_zlib", False, 1, 256 * 1024, 256 * 1024),
        ("zlib-ng", "zlib_ng.zlib_ng", True, 2, 64 * 1024, 32 * 1024),
        ("zlib", "zlib", True, 2, 32 * 1024, 16 * 1024),
    )
    names = None if allowed is None else {*allowed.replace(" ", "").split(","), "zlib"}
    found = [
        _load(name, module, has_levels=has_levels, default_level=level, fast=fast, slow=slow)
        for name, module, has_levels, level, fast, slow in candidates
        if names is None or name in names
    ]
    return {backend.name: backend for backend in found if backend is not None}


_backends = installed_backends(os.environ.get("ANYIO_WS_DEFLATE"))


def compress_backend(level: int | None) -> Backend:
    """The library to compress with: the fastest, or the fastest that has this level."""
    return next(backend for backend in _backends.values() if level is None or backend.has_levels)


def inflate_backend() -> Backend:
    """The library to inflate with."""
    return _backends.get("zlib-ng") or _backends["zlib"]


class CompressorPool:
    """Compressors for messages without context takeover: between two messages they are as good as new.

    A thread takes one, compresses a message, flushes with FULL_FLUSH and gives it back. After an exception it is not
    given back. As many are kept as are rarely at work at once: one for the event loop, and some for worker threads.
    """

    __slots__ = ("_idle", "_new")

    _KEPT = 4

    def __init__(self, new: Callable[[], Compressor]) -> None:
        self._new = new
        self._idle: list[Compressor] = []

    def take(self) -> Compressor:
        """Take one that nobody else uses."""
        try:
            # Either is one step for all threads, with and without a GIL.
            return self._idle.pop()
        except IndexError:
            return self._new()

    def give_back(self, compressor: Compressor) -> None:
        """Give one back that was flushed with FULL_FLUSH."""
        if len(self._idle) < self._KEPT:
            self._idle.append(compressor)


@functools.cache
def compressor_pool(backend: Backend, level: int | None, window_bits: int, memory_level: int) -> CompressorPool:
    """The pool that all connections share which compress alike. There are few ways, and an idle pool is small."""
    return CompressorPool(lambda: backend.new_compressor(level, window_bits, memory_level))

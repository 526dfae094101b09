"""The options that connect, accept and Server share: their defaults and their checks."""

import json as standard_json
import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, TypedDict, TypeGuard, get_args

from .protocol import Deflate


class JSON(Protocol):
    """Anything with `dumps` and `loads`, such as the json module or orjson."""

    def dumps(self, obj: Any, /) -> str | bytes: ...

    def loads(self, data: Any, /) -> Any: ...


OverflowPolicy = Literal["backpressure", "drop_oldest", "drop_newest", "latest", "close"]


class SharedOptions(TypedDict, total=False):
    """The same options, for `**options: Unpack[SharedOptions]`."""

    open_timeout: float | None
    close_timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    idle_timeout: float | None
    max_size: int | None
    receive_buffer_size: int
    overflow: OverflowPolicy
    write_buffer_size: int
    compression: Literal["deflate"] | Deflate | None
    json: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times in seconds, sizes in bytes, None for no limit.

    Attributes:
        open_timeout: from the start of connecting, or from accepting a connection, until it is open.
        close_timeout: from our Close until the connection is gone.
        ping_interval: silence of the peer after which it gets a Ping; None sends none.
        ping_timeout: silence after that Ping was written, after which the connection is given up.
        idle_timeout: time without a message from the peer, after which we close with 1001.
        max_size: the largest message accepted.
        receive_buffer_size: unread messages, each counted as its length + 64, at which reading pauses, or `overflow`
            begins. One that is larger is kept if it is alone.
        overflow: what happens then. "backpressure": reading pauses until half of them are taken. With the others it
            never pauses. "drop_oldest": messages are dropped, the oldest first. "drop_newest": those that do not fit
            are. "latest": only the newest is kept, whatever `receive_buffer_size` says. "close": the connection is
            closed with 1008; what had arrived is received first.
        write_buffer_size: bytes not yet sent at which `send` waits.
        compression: permessage-deflate if the peer has it too: "deflate", or a `Deflate` that says how.
        json: what `send_json` and `receive_json` use.
    """

    open_timeout: float | None = 10
    close_timeout: float | None = 10
    ping_interval: float | None = 20
    ping_timeout: float | None = 20
    idle_timeout: float | None = None
    max_size: int | None = 2**20
    receive_buffer_size: int = 65536
    overflow: OverflowPolicy = "backpressure"
    write_buffer_size: int = 65536
    compression: Literal["deflate"] | Deflate | None = None
    json: JSON = standard_json

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_timeout", "_interval")):
                if value is not None and not (_is_number(value) and value > 0):
                    raise ValueError(f"{field.name} must be a positive number of seconds or None, not {value!r}")
            elif field.name.endswith("_size"):
                check_size(field.name, value, optional=field.name == "max_size")
        policies = get_args(OverflowPolicy)
        if self.overflow not in policies:
            expected = ", ".join(map(repr, policies[:-1]))
            raise ValueError(f"overflow must be {expected} or {policies[-1]!r}, not {self.overflow!r}")
        if self.compression not in (None, "deflate") and type(self.compression) is not Deflate:
            raise ValueError(f'compression must be "deflate", a Deflate or None, not {self.compression!r}')
        if not (hasattr(self.json, "dumps") and hasattr(self.json, "loads")):
            raise TypeError(f"json must have dumps and loads, as the json module does; {self.json!r} has not")

    @property
    def extensions(self) -> tuple[Deflate, ...]:
        """What to negotiate."""
        if self.compression is None:
            return ()
        return (self.compression if isinstance(self.compression, Deflate) else Deflate.balanced(),)

    @property
    def ending_bound(self) -> float:
        """Seconds for the ending under cancellation and after an error: min(close_timeout, 1)."""
        return 1.0 if self.close_timeout is None else min(self.close_timeout, 1.0)


def check_size(name: str, value: object, *, optional: bool) -> None:
    """Check a number of bytes.

    Raises:
        ValueError: it is none.
    """
    is_size = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not is_size and not (optional and value is None):
        expected = "a positive number of bytes or None" if optional else "a positive number of bytes"
        raise ValueError(f"{name} must be {expected}, not {value!r}")


def check_wait(name: str, value: object, *, optional: bool) -> None:
    """Check a number of seconds that may be 0.

    Raises:
        ValueError: it is none.
    """
    if not (_is_number(value) and value >= 0) and not (optional and value is None):
        expected = "a number of seconds, 0 or more" + (", or None" if optional else "")
        raise ValueError(f"{name} must be {expected}, not {value!r}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""What becomes of messages that nobody receives, if reading is not to pause: the option `overflow`.

Theory of operation. The inbox has the latest message first. Under every policy but "backpressure" the core tells the
`Backlog` of each message that arrives and of each that is taken, so that it knows the size of what waits without
looking at it again. A message is touched once when it is counted and once when it is dropped or taken, however many
wait: a flood costs what its messages cost.

A message that a task already waits for takes no room. It is the oldest, and it stays there until that task runs.

What waits depends only on the order in which messages arrived and were taken, not on how the bytes were cut into
chunks.
"""

from .options import OverflowPolicy
from .protocol.frames import MESSAGE_OVERHEAD

ROUND = 65536
"""Bytes of messages that are decoded before the policy looks at them: what may be in memory beside the inbox."""


class Backlog:
    """The messages that wait, counted.

    Args:
        policy: any but "backpressure".
        limit: `receive_buffer_size`.

    Attributes:
        closes: the connection is closed if messages were dropped.
        round: bytes of messages after which `arrived` is to be called, and 1 for each message.
        dropped: how many messages were.
    """

    __slots__ = ("_drops_oldest", "_limit", "_size", "closes", "dropped", "round")

    def __init__(self, policy: OverflowPolicy, limit: int) -> None:
        self._limit = 1 if policy == "latest" else limit  # a message that is larger is kept if it is alone
        self._drops_oldest = policy in ("drop_oldest", "latest")
        self._size = 0
        self.closes: bool = policy == "close"
        self.round: int = 1 if self.closes else ROUND  # nothing is looked at behind the message that closes
        self.dropped: int = 0

    def arrived(self, inbox: list[str | bytes], new: int, promised: bool) -> int:
        """So many messages have come; drop what is too much.

        Args:
            inbox: the latest first.
            new: how many of them have come.
            promised: somebody waits for the oldest.

        Returns:
            How many messages were dropped.
        """
        self._size += _size(inbox[:new])
        limit = self._limit
        if self._size <= limit or len(inbox) < 2:
            return 0
        if promised:
            oldest = inbox.pop()
            limit += len(oldest) + MESSAGE_OVERHEAD
            count = self._drop(inbox, min(new, len(inbox)), limit)
            inbox.append(oldest)
        else:
            count = self._drop(inbox, new, limit)
        self.dropped += count
        return count

    def taken(self, inbox: list[str | bytes], size: int) -> None:
        """A message of this length was taken, or several and the inbox is empty."""
        self._size = self._size - size - MESSAGE_OVERHEAD if inbox else 0

    def _drop(self, inbox: list[str | bytes], new: int, limit: int) -> int:
        return self._drop_oldest(inbox, limit) if self._drops_oldest else self._drop_newest(inbox, new, limit)

    def _drop_oldest(self, inbox: list[str | bytes], limit: int) -> int:
        count = 0
        while self._size > limit and count < len(inbox) - 1:
            count += 1
            self._size -= len(inbox[-count]) + MESSAGE_OVERHEAD
        del inbox[len(inbox) - count :]
        return count

    def _drop_newest(self, inbox: list[str | bytes], new: int, limit: int) -> int:
        fresh = inbox[:new]
        self._size -= _size(fresh)
        kept: list[str | bytes] = []
        for message in reversed(fresh):
            size = len(message) + MESSAGE_OVERHEAD
            alone = not kept and len(inbox) == new
            if alone or self._size + size <= limit:
                self._size += size
                kept.append(message)
        kept.reverse()
        inbox[:new] = kept
        return new - len(kept)


def _size(messages: list[str | bytes]) -> int:
    return sum(map(len, messages)) + MESSAGE_OVERHEAD * len(messages)

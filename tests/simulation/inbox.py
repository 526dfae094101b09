"""What of the messages that arrived is to be received: the option `overflow`, one message at a time."""

import math
from collections import deque


class Inbox:
    """A model of an inbox.

    Args:
        policy: the option.
        limit: `receive_buffer_size`.

    Attributes:
        waiting: the messages that wait, the oldest first: the number of each, and what it counts.
        taken: the numbers of those that left it for a call which has not been looked at yet.
        dropped: the numbers of those that were.
        closed: the policy has closed the connection.
    """

    def __init__(self, policy: str, limit: int) -> None:
        self.waiting: list[tuple[int, int]] = []
        self.taken: deque[int] = deque()
        self.dropped: list[int] = []
        self.closed = False
        self._policy = policy
        self._limit = {"backpressure": math.inf, "latest": 1}.get(policy, limit)

    def arrive(self, number: int, size: int, *, is_awaited: bool) -> None:
        """A message has come. If a task waits for the oldest, that one takes no room."""
        self.waiting.append((number, size))
        rest = self.waiting[is_awaited:]
        while sum(size for _, size in rest) > self._limit and len(rest) > 1:
            drops_oldest = self._policy in ("latest", "drop_oldest")
            self.dropped.append(rest.pop(0 if drops_oldest else -1)[0])
            self.closed = self._policy == "close"
            if not drops_oldest:
                break  # what was kept stays
        self.waiting[is_awaited:] = rest

    def leave(self, left: int, discarded: int) -> None:
        """So many messages are left. Of the others the last were discarded, and those before them taken."""
        gone = len(self.waiting) - left
        self.taken.extend(number for number, _ in self.waiting[: gone - discarded])
        del self.waiting[:gone]

"""What must be so: the accounts of both ends are compared, and the figures of the processes."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

Facts = dict[str, Any]

ROUGH = {"abort", "cancel", "server abort"}
"""Endings after which a connection need not have ended with two Closes."""


class Audit:
    """The accounts of a round.

    Attributes:
        counts: what they add up to.
        faults: what must not be.
    """

    def __init__(self) -> None:
        self._servers: dict[int, Facts] = {}
        self._clients: dict[int, Facts] = {}
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def add(self, accounts: Iterable[Facts], *, of_server: bool) -> None:
        known = self._servers if of_server else self._clients
        for account in accounts:
            if account["conversation"] in known:
                self.faults.append(f"conversation {account['conversation']} was there twice")
            known[account["conversation"]] = account

    def compare(self, *, all_rough: bool) -> None:
        """Compare them all.

        Args:
            all_rough: the round ended so that any connection may have ended without a Close.
        """
        for conversation, client in self._clients.items():
            server = self._servers.pop(conversation, None)
            if server is None:
                self.faults.append(f"the server knows nothing of conversation {conversation}: {client}")
                continue
            faults = [*client["faults"], *server["faults"]]
            faults += _messages_of(client, server, "client to server", self.counts)
            faults += _messages_of(server, client, "server to client", self.counts)
            faults += _ending_of(client, server, all_rough=all_rough)
            self.faults += [f"conversation {conversation}: {fault}: {client} / {server}" for fault in faults]
            self.counts["conversations"] += 1
            self.counts[f"ended by {client['how']}" if not client["at the end"] else "there at the end"] += 1
            self.counts["clean at both ends"] += client["clean"] and server["clean"]
        for conversation, server in self._servers.items():
            if server["code"] == 1001 and all_rough:
                continue  # a reset came to the client with the answer to its handshake
            self.faults.append(f"no client knows of conversation {conversation}: {server}")


def _messages_of(sender: Facts, receiver: Facts, direction: str, counts: Counter[str]) -> list[str]:
    """No message was lost, and none came twice."""
    faults = []
    doubtful = sender["doubtful"]
    if lost := [message for message in receiver["missing"] if message not in doubtful]:
        faults.append(f"{direction}, lost, though others came later: {lost}")
    for stream, expected in receiver["expected"].items():
        if expected > sender["sent"].get(stream, 0):
            faults.append(f"{direction}, {stream}: more was received than sent")
    received, certain = sum(receiver["received"].values()), sum(sender["sent"].values()) - len(doubtful)
    if not certain <= sender["committed"] <= certain + len(doubtful):
        faults.append(f"{direction}: {certain} messages were sent, {len(doubtful)} perhaps; stats say otherwise")
    # Whoever closes discards what has arrived, and what still does.
    everything = receiver["read_to_end"] and receiver["initiator"] == "peer"
    if receiver["arrived"] < received or (everything and receiver["arrived"] != received):
        faults.append(f"{direction}: {received} messages were received; stats say otherwise")
    if everything and receiver["clean"]:
        counts["complete directions"] += 1
        if received != sender["committed"]:
            faults.append(
                f"{direction}: {sender['committed']} messages were sent before the Close, {received} received"
            )
    counts["messages"] += received
    counts["messages given up"] += len(doubtful)
    counts["bytes"] += sender["bytes"]
    return faults


def _ending_of(client: Facts, server: Facts, *, all_rough: bool) -> list[str]:
    """The connection ended as it was to end."""
    faults = []
    rough = client["how"] in ROUGH or (all_rough and client["at the end"])
    if not rough:
        if not (client["clean"] and server["clean"]):
            faults.append("it did not end with two Closes")
        if client["code"] != server["code"] and "peer" in (client["initiator"], server["initiator"]):
            faults.append("the ends do not agree on the code")
        if "peer" == client["initiator"] == server["initiator"]:
            faults.append("nobody began the closing")
        codes = {1000, 1001} if client["at the end"] else {1000}
        if not {client["code"], server["code"]} <= codes:
            faults.append(f"it ended with an unexpected code, expected {codes}")
    if "ping_timeout" in client["ending"] + server["ending"]:
        faults.append("keepalive ended a live connection")
    return faults


def level_faults(name: str, before: Facts, after: Facts, bounds: dict[str, int]) -> list[str]:
    """A process has what it had: no figure has grown by more than its bound."""
    return [
        f"{name}: {what} have grown from {before[what]:,} to {after[what]:,}, bound {bound:,}"
        for what, bound in bounds.items()
        if after[what] - before[what] > bound
    ]

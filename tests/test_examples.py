"""The examples do what they say, as users run them: in processes of their own, with real sockets and clocks."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

EXAMPLES = Path(__file__).parents[1] / "examples"
LOOPS = ["asyncio", "trio", pytest.param("uvloop", marks=pytest.mark.skipif(os.name == "nt", reason="not on Windows"))]


class Example:
    """A running example, whose output is read line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self.process = process
        self.output = process.stdout

    def line(self) -> str:
        return self.output.readline().rstrip()

    def port(self) -> str:
        """Wait until it listens."""
        line = self.line()
        assert "listening on ws://" in line
        return line.rpartition(":")[2].rstrip("/")

    def stop(self, signum: int = signal.SIGINT) -> str:
        self.process.send_signal(signum)
        return self.rest()

    def rest(self) -> str:
        """Wait until it ends by itself, without an error; return what it printed meanwhile."""
        output = self.output.read()
        assert self.process.wait() == 0, output
        return output


Start = Callable[..., Example]


@pytest.fixture(params=LOOPS)
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    pytest.importorskip(request.param)
    with ExitStack() as stack:

        def start(name: str, *args: str) -> Example:
            process = subprocess.Popen(
                [sys.executable, EXAMPLES / name, *args, "--backend", request.param],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Example(process)

        yield start


def test_echo(start: Start) -> None:
    server = start("echo_server.py", "0")
    client = start("echo_client.py", server.port()).rest().splitlines()
    assert client[0] == "received 'hello'"
    assert client[1].startswith("the round trip took ")
    assert server.stop() == ""


def test_echo_client_says_what_is_wrong(start: Start) -> None:
    server = start("echo_server.py", "0")
    port = server.port()
    server.stop()
    client = start("echo_client.py", port)
    assert client.line().startswith("could not connect: cannot connect to ws://localhost:")
    assert client.process.wait() == 1


def test_producer_and_consumer(start: Start) -> None:
    producer = start("producer.py", "0")
    consumer = start("consumer.py", producer.port())
    assert [consumer.line() for _ in range(3)] == [f"received 'number {number}'" for number in (1, 2, 3)]
    assert producer.stop() == ""
    assert consumer.rest().endswith("the connection has ended: 1001 (going away) from the peer\n")


def test_the_producer_goes_on_when_a_consumer_leaves(start: Start) -> None:
    producer = start("producer.py", "0")
    port = producer.port()
    for _ in range(2):
        consumer = start("consumer.py", port)
        assert consumer.line() == "received 'number 1'"
        consumer.stop()
    assert producer.stop() == ""


def test_producer_consumer(start: Start) -> None:
    lines = start("producer_consumer.py").rest().splitlines()
    for number in 1, 2, 3:
        assert f"server received 'message {number} of the client'" in lines
        assert f"client received 'message {number} of the server'" in lines
    # The client's producer ends first. That ends the client's consumer, then the connection, then the server's two.
    ends = [line for line in lines if "ended" in line]
    assert ends[:2] == ["client: the producer has ended", "client: the consumer has ended"]
    assert sorted(ends[2:4]) == ["server: the consumer has ended", "server: the producer has ended"]
    assert ends[4:] == ["the connection has ended: 1000 (normal closure) from here"]


def test_registration(start: Start) -> None:
    server = start("registration.py", "0")
    port = server.port()
    first = start("consumer.py", port)
    assert first.line() == "received 'clients: 1'"
    second = start("consumer.py", port)
    assert second.line() == "received 'clients: 2'"
    assert first.line() == "received 'clients: 2'"
    second.stop()
    assert first.line() == "received 'clients: 1'"
    assert server.stop() == ""
    assert first.rest() == "the connection has ended: 1001 (going away) from the peer\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_shutdown(start: Start, signum: signal.Signals) -> None:
    example = start("shutdown.py", "0")
    port = example.port()
    assert {example.line(), example.line()} == {"server: a client has connected", "client: received 'still there?'"}
    other = start("consumer.py", port)
    while example.line() != "server: a client has connected":
        pass
    output = example.stop(signum).splitlines()
    # Its own client is cancelled; then the server drains, which ends the other one.
    assert [line for line in output if not line.startswith("client: ")] == [
        f"received {signum.name}",
        "server: a connection has ended: 1001 (going away) from the peer",
        "server: a connection has ended: 1001 (going away) from here",
        "nothing is left",
    ]
    assert other.rest() == "the connection has ended: 1001 (going away) from the peer\n"


@pytest.fixture
def certificate(tmp_path: Path) -> list[str]:
    """Certificate, key and authority, as files."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    files = [tmp_path / "certificate.pem", tmp_path / "key.pem", tmp_path / "authority.pem"]
    issued.cert_chain_pems[0].write_to_path(files[0])
    issued.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(files[2])
    return [str(file) for file in files]


def test_tls(start: Start, certificate: list[str]) -> None:
    assert start("tls.py", *certificate).rest() == "received 'hello' over TLSv1.3\n"


@pytest.mark.skipif(os.name == "nt", reason="no Unix sockets in Python on Windows")
def test_unix_socket(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert start("unix_socket.py", str(path)).rest() == f"listening on {path}\nreceived 'hello'\n"
    assert not path.exists()

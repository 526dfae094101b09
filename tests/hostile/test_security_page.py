"""docs/explanation/security.md and guarantees.md: their tests exist, and those of rows that no other file holds."""

import re
import time
from pathlib import Path

import pytest

from anyio_ws.protocol import InvalidHandshake, ServerHandshake
from support.peers import UPGRADE

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / "explanation" / f"{name}.md").read_text("utf-8") for name in ("security", "guarantees")}

# Those that the page must not lose.
ADVISORIES = (
    *("CVE-2018-1000518", "CVE-2026-1526", "CVE-2026-48779", "CVE-2026-12151", "CVE-2020-27813", "CVE-2026-1528"),
    *("CVE-2026-2229", "CVE-2026-59881", "CVE-2026-69243", "CVE-2026-1527", "CVE-2024-37890", "CVE-2023-43669"),
    *("CVE-2021-32640", "CVE-2021-33880"),
)


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_the_page_names_exists(page: str) -> None:
    written = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    exist = set(re.findall(r"^ *(?:async )?def (test_\w+)\(", written, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", PAGES[page]))
    assert named - exist == set()


@pytest.mark.parametrize(("page", "least"), [("security", 40), ("guarantees", 30)])
def test_every_row_of_the_page_names_a_test(page: str, least: int) -> None:
    rows = [line for line in PAGES[page].splitlines() if line.startswith("| ") and not line.endswith("| The test |")]
    assert len(rows) > least
    assert [row for row in rows if "`test_" not in row.split(" | ")[-1]] == []


@pytest.mark.parametrize("advisory", ADVISORIES)
def test_every_advisory_has_its_row(advisory: str) -> None:
    assert len(re.findall(rf"^\|.*\b{advisory} .*\| `test_", PAGES["security"], re.MULTILINE)) == 1


# An expression that backtracks takes seconds over so many blanks; the bound is far from both.
SECONDS = 0.5


@pytest.mark.parametrize("end", ["", "b", "\f", ",", ";", '"', "="])
@pytest.mark.parametrize(
    "name",
    [
        *("X", "Connection", "Upgrade", "Origin", "Cookie", "Content-Length", "Transfer-Encoding"),
        *("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Version"),
    ],
)
def test_a_header_of_blanks_takes_no_time(name: str, end: str) -> None:
    field = f"{name}: a{' ' * 15_000}{end}\r\n\r\n".encode()
    start = time.process_time()
    handshake = ServerHandshake()
    try:
        handshake.feed(UPGRADE[:-2] + field)
    except InvalidHandshake:
        pass
    else:
        handshake.accept()
    assert time.process_time() - start < SECONDS


def test_a_header_byte_by_byte_takes_no_longer_than_its_bytes() -> None:
    def seconds(size: int) -> float:
        data = UPGRADE[:-2] + b"X: " + b"x" * size
        handshake = ServerHandshake()
        start = time.process_time()
        for i in range(len(data)):
            handshake.feed(data[i : i + 1])
        return time.process_time() - start

    assert seconds(15_000) < SECONDS


def test_the_library_compares_no_secrets() -> None:
    # Where a password or an Authorization header occurs, it is one that our client sends.
    sources = [path for path in (ROOT / "anyio_ws").rglob("*.py") if "test" not in path.name]
    found = {path.name for path in sources if re.search("password|Authorization", path.read_text("utf-8"))}
    assert found <= {"client.py", "url.py", "client_handshake.py", "handshake_fields.py", "http.py"}

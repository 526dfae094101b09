"""The short form of the soak: hundreds of connections, seconds; `nox -s soak` is the long one."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

LOOPS = [name for name in ("asyncio", "trio", "uvloop") if find_spec(name)]

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(
        not os.path.isdir("/proc/self/fd"), reason="descriptors and memory are counted in Linux's /proc"
    ),
    pytest.mark.timeout(60),  # it says itself after 42 s what hangs
]


def soak(*arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "soak", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("loop", LOOPS)
def test_under_load_no_message_is_lost_and_nothing_is_left_behind(loop: str) -> None:
    soak("--loop", loop, "--short")


def test_no_allocation_is_left_behind() -> None:
    soak("--loop", "asyncio", "--short", "--trace", "--connections", "50", "--churn", "50")

"""The benchmarks run, from the command line to the tables. What they measure is not tested."""

import subprocess
import sys
from pathlib import Path

ROWS = [
    "decode, masked, 16 B",
    "server: 16 B",
    "server: 16 B, 100 connections",
    "server: 16 B, sent in bursts",
    "server: open and close",
    "server: idle connection, KiB",
    "client: 1 MiB",
]


def test_every_section_makes_a_table() -> None:
    # This program is there whether or not the codec was compiled.
    command = "--loops asyncio --programs anyio_ws-pure --repetitions 1 --seconds 0.002 --connections 10"
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command.split()],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "failed" not in result.stdout
    labels = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line.startswith("| ")]
    assert set(ROWS) <= set(labels), result.stdout

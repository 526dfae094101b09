"""The two codecs that the tests run on."""

import importlib
import os
from types import ModuleType

import pytest

CODECS = ["_pycodec", "_codec"]


def load(name: str) -> ModuleType:
    """Import a codec; skip the test if it was not built, unless the environment has ANYIO_WS_NEED_C."""
    try:
        return importlib.import_module(f"anyio_ws.protocol.{name}")
    except ModuleNotFoundError:
        if "ANYIO_WS_NEED_C" in os.environ:
            raise
        pytest.skip(f"{name} was not built: there was no compiler when the package was installed")

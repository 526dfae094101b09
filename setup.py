"""The one thing that pyproject.toml cannot say without a warning: the extension module."""

from setuptools import Extension, setup

# optional: where there is no compiler, the installation goes on, and the codec in Python is used.
setup(ext_modules=[Extension("anyio_ws.protocol._codec", ["anyio_ws/protocol/_codec.c"], optional=True)])

"""How the documentation is built: `nox -s docs`, or `sphinx-build -W -n -b html docs docs/_build/html`.

It builds without a network. `-t online` adds links into the documentation of Python, anyio and trio.
"""

import builtins
import os
import re
from importlib.metadata import version as installed_version
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

# The docstrings at length are those of the codec in Python.
os.environ["ANYIO_WS_PURE"] = "1"

project = "anyio_ws"
author = "the anyio_ws contributors"
copyright = f"2026, {author}"
version = release = installed_version("anyio-ws")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"anyio_ws {version}"

# Every heading of two levels is an anchor, so that pages link to sections as on GitHub.
myst_heading_anchors = 2
myst_enable_extensions = ["colon_fence", "deflist"]

# Docstrings say `name`, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
if tags.has("online"):  # type: ignore[name-defined]  # noqa: F821  # Sphinx defines it
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anyio": ("https://anyio.readthedocs.io/en/stable", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }
# Names of others, which only an inventory from the network could resolve, and ours that are not public.
nitpick_ignore_regex = [
    ("py:.*", r"(anyio|trio|ssl|socket|os|re|collections|typing|enum|types|logging|json)\..*"),
    ("py:.*", "|".join(dir(builtins))),
    ("py:.*", r"anyio_ws\.(options\.(JSON|SharedOptions)|websocket\.Messages|transports\.stream\.TrioStream)"),
    ("py:.*", r"anyio_ws\.protocol\.restoring\.Restoring"),
    ("py:.*", r"(Any|Callable|Sequence|Mapping|Iterable|Awaitable|Literal|Self|Unpack|PathLike|Pattern|T)"),
]

PUBLIC_MODULES = ("anyio_ws", "anyio_ws.testing", "anyio_ws.protocol")
SEVERAL = re.compile(r"(\s+)([\w.]+(?:, [\w.]+)+): (.*)")


def split_entries(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Give each name of `A, B: text` under Raises and Attributes an entry of its own, as napoleon expects."""
    for number, line in reversed(list(enumerate(lines))):
        if match := SEVERAL.fullmatch(line):
            indent, names, text = match.groups()
            end = number + 1
            while end < len(lines) and lines[end].startswith(indent + " "):
                end += 1
            more = lines[number + 1 : end]
            lines[number:end] = [
                entry for single in names.split(", ") for entry in (f"{indent}{single}: {text}", *more)
            ]


def resolve_public(app: Sphinx, env: BuildEnvironment, node: pending_xref, child: nodes.Element) -> Any:
    """Find a name that Python knows by the module of its definition under the module it is public in."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    domain = env.get_domain("py")
    for module in PUBLIC_MODULES:
        public = f"{module}.{target.rpartition('.')[2]}"
        if public in domain.objects:  # type: ignore[attr-defined]
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, child)
    return None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", split_entries, priority=100)  # before napoleon
    app.connect("missing-reference", resolve_public)

"""The public names, their documentation, and who may import whom."""

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import anyio_ws
import anyio_ws.exceptions
import anyio_ws.protocol
import anyio_ws.testing

PACKAGE = Path(anyio_ws.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = [anyio_ws, anyio_ws.protocol, anyio_ws.testing]


def names(module: ModuleType) -> list[tuple[str, object]]:
    return [(name, getattr(module, name)) for name in module.__all__]


def identify(module: object) -> str:
    return module.__name__ if isinstance(module, ModuleType) else str(module)


# Names


@pytest.mark.parametrize("module", [*PUBLIC, anyio_ws.exceptions], ids=identify)
def test_all_is_sorted_and_without_duplicates(module: ModuleType) -> None:
    # As ruff sorts: constants, classes, functions.
    def kind(name: str) -> int:
        return 0 if name.isupper() else 1 if name[0].isupper() else 2

    assert module.__all__ == sorted(set(module.__all__), key=lambda name: (kind(name), name))


@pytest.mark.parametrize("module", PUBLIC, ids=identify)
def test_all_has_every_public_name(module: ModuleType) -> None:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    }
    if module is not anyio_ws.testing:  # an __init__.py re-exports what it imports
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
    else:
        defined -= {"PairOptions"}  # a TypedDict for a signature
    assert set(module.__all__) == defined


def test_every_exception_users_catch_is_public() -> None:
    assert set(anyio_ws.exceptions.__all__) <= set(anyio_ws.__all__)


def test_an_init_re_exports_and_nothing_else() -> None:
    for module in anyio_ws, anyio_ws.protocol:
        assert module.__file__ is not None
        docstring, *imports, dunder_all = ast.parse(Path(module.__file__).read_text()).body
        assert isinstance(docstring, ast.Expr)
        assert all(isinstance(node, ast.ImportFrom) for node in imports)
        assert isinstance(dunder_all, ast.Assign)


# Documentation


def public_members(value: type) -> Iterator[tuple[str, object]]:
    """What a class of ours defines itself, without a leading underscore."""
    for name, member in vars(value).items():
        if not name.startswith("_"):
            member = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(member) or isinstance(member, property):
                yield f"{value.__name__}.{name}", member


PUBLIC_VALUES = {name: value for module in PUBLIC for name, value in names(module)}
DOCUMENTED: dict[str, object] = {
    name: value for name, value in PUBLIC_VALUES.items() if inspect.isclass(value) or inspect.isfunction(value)
}
for value in tuple(DOCUMENTED.values()):
    if inspect.isclass(value) and value.__module__.startswith("anyio_ws"):
        DOCUMENTED.update(public_members(value))


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_public_name_has_a_docstring(name: str) -> None:
    owner, _, member = name.partition(".")
    if owner == "RawPeer" and member in ("get_buffer", "received", "eof", "writable", "fail"):
        return  # the transport's receiver; the interface says what they are
    docstring = vars(DOCUMENTED[name]).get("__doc__") if inspect.isclass(DOCUMENTED[name]) else DOCUMENTED[name].__doc__
    assert docstring
    assert docstring.strip()


ASYNC = sorted(name for name, value in DOCUMENTED.items() if inspect.iscoroutinefunction(value))
MANAGERS = sorted(name for name, value in PUBLIC_VALUES.items() if hasattr(value, "__aenter__"))


@pytest.mark.parametrize("name", [*ASYNC, *MANAGERS])
def test_everything_async_says_what_a_cancellation_does(name: str) -> None:
    if name == "WebSocket.send_eof":
        return  # not implemented
    if name.startswith("RawPeer."):
        return  # a tool for tests
    value = DOCUMENTED[name]
    if name in ("MemoryServer", "raw_peer", "WebSocket"):
        return  # a Server; drops its connection; a context manager only because anyio's streams are
    docstring = inspect.getdoc(value)
    assert docstring is not None
    assert any(line.strip().startswith("Cancellation:") for line in docstring.splitlines())


def test_there_is_something_to_test() -> None:
    assert {"WebSocket.send", "Server.drain", "serve"} <= set(ASYNC)
    assert {"connect", "accept", "Server", "connected_pair"} <= set(MANAGERS)


# Imports go down only

FLOORS = {
    "protocol": {"protocol"},
    "loops": {"loops"},
    "transports": {"transports", "loops"},
}
"""What the modules of a folder may import from the package."""

ORDER = [
    {"protocol", "loops"},
    {"transports"},
    {"exceptions", "options", "stats", "tasks"},
    {"byte_stream", "logs", "outbox", "overflow"},
    {"inbox", "pings", "workers"},
    {"keepalive"},
    {"core"},
    {"receive_stream", "running", "send_stream"},
    {"websocket"},
    {"opening"},
    {"upgrade"},
    {"attending"},
    {"client", "server"},
    {"testing"},
    {"__init__"},
]
"""The modules above them, from the bottom: each imports from those before it."""


def imports(path: Path) -> set[str]:
    """Everything that a file imports, absolutely; imports for type checkers do not count."""
    module = ["anyio_ws", *path.relative_to(PACKAGE).with_suffix("").parts]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def ours(path: Path) -> set[str]:
    """The parts of the package that a file imports: the first name below anyio_ws."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("anyio_ws.")}


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("protocol/*.py")), ids=relative)
def test_protocol_imports_the_standard_library_h11_and_itself(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        assert top in sys.stdlib_module_names or top == "h11" or name.startswith("anyio_ws.protocol")
        assert top not in ("asyncio", "socket", "ssl", "selectors", "threading", "time")  # no I/O, no clock


@pytest.mark.parametrize("folder", sorted(FLOORS))
def test_a_lower_floor_does_not_know_the_upper_ones(folder: str) -> None:
    for path in PACKAGE.glob(f"{folder}/*.py"):
        assert ours(path) <= FLOORS[folder], path


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=relative)
def test_imports_go_down_only(path: Path) -> None:
    name = path.stem
    (floor,) = [index for index, modules in enumerate(ORDER) if name in modules]
    assert ours(path) <= set().union(*ORDER[:floor]), path


def test_only_loops_asks_which_loop_runs() -> None:
    allowed = {"loops/asyncio_loop.py", "loops/trio_loop.py", "loops/__init__.py", "testing.py"}
    for path in MODULES:
        if {"asyncio", "trio", "trio.lowlevel", "trio.testing", "uvloop"} & imports(path):
            assert relative(path) in allowed


def test_nothing_is_imported_lazily_but_trio() -> None:
    for path in MODULES:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        assert "trio" in ast.unparse(node), path


@pytest.mark.parametrize("module", ["anyio_ws", "anyio_ws.protocol", "anyio_ws.testing"])
def test_it_works_without_trio_uvloop_and_pytest(module: str) -> None:
    program = f"""
import sys
sys.modules.update(dict.fromkeys(["trio", "uvloop", "pytest", "_pytest"]))  # importing any of them raises
import anyio, {module}
from anyio_ws.testing import MemoryServer
async def echo(ws):
    async for message in ws:
        await ws.send(message)
async def main():
    async with MemoryServer(echo) as server, server.connect() as ws:
        await ws.send("hello")
        print(await ws.receive())
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_every_module_has_a_docstring_and_imports_alone() -> None:
    for path in MODULES:
        if path.name == "trio_loop.py" and importlib.util.find_spec("trio") is None:
            continue  # the one module that needs it
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        assert importlib.import_module(".".join(parts).removesuffix(".__init__")).__doc__, path


def test_type_checkers_are_told_that_there_are_types() -> None:
    assert (PACKAGE / "py.typed").exists()

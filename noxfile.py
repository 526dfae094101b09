"""The test matrix: `nox` runs all of it, `nox -l` lists it, `nox -s lint types` a part."""

import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">= 2025.2.9"
nox.options.error_on_missing_interpreters = False

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
# What is type-checked strictly beside the package: what users read and copy.
TYPED_PROGRAMS = ["examples", "tests/test_programs.py"]


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def lowest() -> list[str]:
    """Return every lower bound of a run-time dependency or an extra of ours, as a pin."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    requirements = [*PYPROJECT["project"]["dependencies"], *extras["trio"], *extras["uvloop"]]
    return [re.sub(r"\s*>=\s*", "==", requirement, count=1) for requirement in requirements]


def run_pytest(session: nox.Session, *args: str, runner: tuple[str, ...] = ("python", "-m")) -> None:
    """Run pytest, with the npm package `ws` at hand where npm is."""
    env = {}
    if npm := shutil.which("npm"):
        prefix = Path(session.cache_dir).resolve() / "npm"
        if not (prefix / "node_modules" / "ws").is_dir():
            session.run(
                npm, "install", "--silent", "--no-audit", "--no-fund", f"--prefix={prefix}", "ws@8", external=True
            )
        env["ANYIO_WS_NODE_MODULES"] = str(prefix / "node_modules")
    else:
        session.warn("npm is not installed: the tests against its package ws will be skipped")
    session.run(*runner, "pytest", *args, *session.posargs, env=env)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Every test but Autobahn's, on every Python."""
    session.install("-e", ".[test]")
    run_pytest(session)


@nox.session
def no_trio(session: nox.Session) -> None:
    """The tests where trio is not installed."""
    session.install("-e", ".[test]")
    session.run("pip", "uninstall", "-q", "-y", "trio", "pytest-trio", silent=True)
    run_pytest(session)


@nox.session(python=PYTHONS[0])
def lowest_dependencies(session: nox.Session) -> None:
    """The tests on the lowest Python with the lowest versions that pyproject.toml admits."""
    # pytest 9.2 moved a name that the pytest plugin of that anyio imports.
    session.install("-e", ".[test]", "pytest < 9.2", *lowest())
    run_pytest(session)


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage of the package."""
    session.install("-e", ".[test]")
    session.run("coverage", "erase")
    run_pytest(session, runner=("coverage", "run", "-m"))
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session
def autobahn(session: nox.Session) -> None:
    """Autobahn's test cases, groups 1 to 10, on our server and our client."""
    session.install("-e", ".[test]", *group("conformance"))
    run_pytest(session, "tests/conformance")


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint."""
    session.install(*group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package and the programs, and that every public name has one."""
    # Not editable: --verifytypes reads the installed package.
    session.install(".[test]", *group("types"))
    session.run("mypy", "anyio_ws", *TYPED_PROGRAMS)
    session.run("pyright")
    session.run("pyright", "--verifytypes", "anyio_ws", "--ignoreexternal")


@nox.session
@nox.parametrize("backend", ["asyncio", "uvloop", "trio"])
def examples(session: nox.Session, backend: str) -> None:
    """The example of the README, against the built wheel and nothing but what it asks for."""
    session.install("." if backend == "asyncio" else f".[{backend}]")
    session.run("python", "examples/producer_consumer.py", "--backend", backend)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, warnings as errors."""
    session.install("-e", ".[trio]", *group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")

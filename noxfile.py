"""The test matrix: `nox` runs all of it, `nox -l` lists it, `nox -s lint types` a part."""

import re
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">= 2025.2.9"
nox.options.error_on_missing_interpreters = False

PROJECT = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
# What is type-checked strictly beside the package: what users read and run.
TYPED_PROGRAMS = ["benchmarks", "examples", "tests/test_programs.py"]
FUZZ_TARGETS = ["decoder", "connection", "deflate", "handshake_server", "handshake_client"]
# For sessions that differ in what is around the library. `pure`, and the README's command, run all tests.
QUICK = ["-m", "not exhaustive"]
# For those where a browser has nothing to add: `tests` has it on every Python.
QUICK_NO_BROWSER = ["-m", "not exhaustive and not chromium"]
# What the versions of the other packages make no difference to.
NO_PROTOCOL = ["--ignore=tests/protocol", "--ignore=tests/fuzz"]
# The tests of the codec in C fail, instead of being skipped, where it was not built.
NEED_C = {"ANYIO_WS_NEED_C": "1"}


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def lowest() -> list[str]:
    """Return every lower bound of a run-time dependency or an extra of ours, as a pin."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    requirements = [*PYPROJECT["project"]["dependencies"], *extras["trio"], *extras["uvloop"], *extras["deflate"]]
    return [re.sub(r"\s*>=\s*", "==", requirement, count=1) for requirement in requirements]


def run_pytest(session: nox.Session, *args: str, runner: tuple[str, ...] = ("python", "-m")) -> None:
    """Run pytest, with the npm package `ws` at hand where npm is."""
    env = dict(NEED_C)
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
    """The tests on every Python."""
    session.install("-e", ".[test]", *group("loops"))
    run_pytest(session, *QUICK)


@nox.session
def pure(session: nox.Session) -> None:
    """The tests with the codec in Python."""
    session.install("-e", ".[test]")
    session.env["ANYIO_WS_PURE"] = "1"
    run_pytest(session)


@nox.session
def no_compiler(session: nox.Session) -> None:
    """The package installs where there is no compiler, says nothing about it, and works."""
    # From the sdist: the tree may have modules that were built before.
    session.install("build")
    sdists = Path(session.create_tmp())
    session.run("python", "-m", "build", "-q", "--sdist", "--outdir", str(sdists), silent=True)
    (sdist,) = sdists.glob("*.tar.gz")
    output = session.run(
        *("python", "-m", "pip", "install", "--force-reinstall", f"anyio-ws[test] @ {sdist.resolve().as_uri()}"),
        env={"CC": "no-such-compiler"},
        silent=True,
    )
    if "no-such-compiler" in str(output):
        session.error("pip mentions the compiler")
    session.chdir(sdists)
    session.run("python", "-c", "from anyio_ws import protocol; assert protocol.IMPLEMENTATION == 'python'")
    tests = PROJECT / "tests/protocol"
    session.run(
        "python", "-m", "pytest", "-q", "-rfE", f"--rootdir={PROJECT}", f"-c{PROJECT / 'pyproject.toml'}", str(tests)
    )


@nox.session
def sanitize(session: nox.Session) -> None:
    """The tests of the protocol under AddressSanitizer and UndefinedBehaviorSanitizer, with gcc."""
    session.install(".[test]")  # what the tests need; the sanitized module comes from a build beside the tree
    session.run("pip", "uninstall", "-q", "-y", "anyio-ws", silent=True)
    tree = Path(session.create_tmp()) / "sanitized"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree("anyio_ws", tree / "anyio_ws", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy("setup.py", tree)
    session.install("setuptools")
    with session.chdir(tree):
        sanitizers = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
        warnings = "-Wall -Wextra -Wconversion -Wno-sign-conversion -Werror"
        session.run(
            *("python", "setup.py", "-q", "build_ext", "--inplace"),
            env={"CC": "gcc", "CFLAGS": f"-O1 -g {warnings} {sanitizers}", "LDFLAGS": sanitizers},
            silent=True,
        )
    libraries = [
        str(session.run("gcc", f"-print-file-name={name}", external=True, silent=True)).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    report = tree.resolve() / "report"
    session.run(
        *("python", "-m", "pytest", "tests/protocol", "-q", "-p", "no:cacheprovider", *session.posargs),
        env={
            **NEED_C,
            "PYTHONPATH": str(tree.resolve()),
            "PYTHONSAFEPATH": "1",  # not the package of this directory
            "LD_PRELOAD": " ".join(libraries),
            # Every object gets a block of its own, with red zones around it.
            "PYTHONMALLOC": "malloc",
            # CPython leaves much behind at its end: leaks are counted, and only those of ours are an error.
            "ASAN_OPTIONS": f"detect_leaks=1:exitcode=99:log_path={report}:allocator_may_return_null=1",
            "LSAN_OPTIONS": "exitcode=0:max_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
    )
    reports = [text for path in tree.glob("report.*") if "_codec" in (text := path.read_text())]
    if reports:
        session.error("\n".join(reports))


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz each target for 15 s, or one for longer: `nox -s fuzz -- handshake_server -max_total_time=3600 -seed=0`.

    The same code gets the same inputs, for it is the code that CI judges. With -seed=0, which is a new one each time, a
    fuzzer looks further.
    """
    session.install("-e", ".[test]", *group("fuzz"))
    corpora = Path(session.cache_dir).resolve() / "fuzz"
    targets = [arg for arg in session.posargs if not arg.startswith("-")]
    options = [arg for arg in session.posargs if arg.startswith("-")]
    # The fuzzer chooses by hashes and addresses too. Some sandboxes do not let a process have fixed ones.
    setarch = shutil.which("setarch")
    fixed = [setarch, "-R"] if setarch and subprocess.run([setarch, "-R", "true"], check=False).returncode == 0 else []
    for target in targets or FUZZ_TARGETS:
        command = [*fixed, "python", "-m", "tests.fuzz", target, str(corpora / target)]
        # What makes a target fail is kept beside its corpus. Of an option that is given twice, the last counts.
        limits = ["-max_total_time=15", "-max_len=4096", "-timeout=20", f"-artifact_prefix={corpora}/{target}-"]
        repeatable = ["-seed=1", "-reload=0"]
        env = {**NEED_C, "PYTHONHASHSEED": "0"}
        session.run(*command, *limits, *repeatable, *options, env=env, external=True)


@nox.session
def no_trio(session: nox.Session) -> None:
    """The tests where trio is not installed."""
    session.install("-e", ".[test]")
    session.run("pip", "uninstall", "-q", "-y", "trio", "pytest-trio", silent=True)
    run_pytest(session, *QUICK_NO_BROWSER, *NO_PROTOCOL)


@nox.session(python=PYTHONS[0])
def lowest_dependencies(session: nox.Session) -> None:
    """The tests on the lowest Python with the lowest versions that pyproject.toml admits."""
    # pytest 9.2 moved a name that the pytest plugin of that anyio imports.
    session.install("-e", ".[test]", "pytest < 9.2", *lowest())
    run_pytest(session, *QUICK_NO_BROWSER, "--ignore=tests/fuzz")


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage of the package."""
    session.install("-e", ".[test]")
    session.run("coverage", "erase")
    run_pytest(session, *QUICK_NO_BROWSER, runner=("coverage", "run", "-m"))
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session
def autobahn(session: nox.Session) -> None:
    """Autobahn's test cases on our server and our client, with either codec.

    Of permessage-deflate one of each set, with the codec in C: `ANYIO_WS_AUTOBAHN_ALL=1 nox -s autobahn` runs all of
    them, some minutes each. `ANYIO_WS_DEFLATE` names the library.
    """
    session.install("-e", ".[test,deflate]", *group("conformance"))
    # These tests have timeouts of their own, of up to half an hour.
    run_pytest(session, "tests/conformance", "-o", "faulthandler_timeout=1800")
    session.env["ANYIO_WS_PURE"] = "1"
    run_pytest(session, "tests/conformance", "-k", "not deflate")


@nox.session(default=False)
def wstest(session: nox.Session) -> None:
    """The same with Autobahn's own program: `nox -s wstest -- --wstest PATH --roles client --loops trio`."""
    session.install("-e", ".[trio,uvloop]")
    session.run("python", "-m", "tests.conformance.wstest", *session.posargs)


@nox.session
def deflate(session: nox.Session) -> None:
    """Compression with each library that does it, and `websockets`, `ws` of npm and Chromium as peers."""
    session.install("-e", ".[test,deflate]")
    run_pytest(session, "tests/integration", "-k", "TestCompression")


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


@nox.session(default=False)
def simulation(session: nox.Session) -> None:
    """Millions of steps, or one seed: `nox -s simulation -- --loop trio --kind tls --seed 7 --trace`."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "simulation", *(session.posargs or ["--seconds", "60"]), env={"PYTHONPATH": "tests"})


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """10,000 connections on each loop for a minute, or `nox -s soak -- --seconds 600`; `tests` has the short form."""
    session.install("-e", ".[trio,uvloop]")
    session.run("python", "-m", "soak", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Figures beside those of other libraries, or some of them: `nox -s bench -- servers --loops trio`."""
    session.install("-e", ".[trio,uvloop]", *group("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, warnings as errors."""
    session.install("-e", ".[trio]", *group("docs"))
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")

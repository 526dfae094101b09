"""A headless Chromium, and its pages. Our own client drives it, by the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from anyio_ws import WebSocket, connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IS_NEEDED = "ANYIO_WS_NEED_CHROMIUM" in os.environ

FLAGS = [
    "--headless",
    "--remote-debugging-port=0",
    "--no-sandbox",  # which root cannot have
    "--ignore-certificate-errors",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Nothing of its own over the network.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def browser() -> Iterator[str]:
    """Run Chromium; gives the address of its DevTools."""
    assert PROGRAM, "ANYIO_WS_NEED_CHROMIUM is set, but there is no chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *FLAGS, f"--user-data-dir={profile}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if line.startswith("DevTools listening on "):
                    break
            else:
                raise AssertionError(f"chromium has not started: {''.join(said)}")
            # It goes on talking, and waits when nobody reads.
            reader = threading.Thread(target=process.stderr.read)
            reader.start()
            try:
                yield said[-1].split()[-1]
            finally:
                process.terminate()
                reader.join()


class Page:
    """A page in a window of its own, without cookies."""

    def __init__(self, devtools: WebSocket) -> None:
        self._devtools = devtools
        self._session: dict[str, str] = {}
        self._commands = 0

    async def open(self) -> None:
        context = await self._command("Target.createBrowserContext", disposeOnDetach=True)
        target = await self._command("Target.createTarget", url="about:blank", **context)
        self._session = await self._command("Target.attachToTarget", flatten=True, **target)

    async def visit(self, url: str) -> None:
        """Load a document, all of it."""
        await self._command("Page.navigate", url=url)
        await self.run("document.readyState === 'complete' || new Promise((resolve) => { onload = resolve })")

    async def run(self, script: str) -> Any:
        """Return the value of an expression; if it is a promise, what it resolves to."""
        answer = await self._command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def _command(self, method: str, **parameters: object) -> dict[str, Any]:
        self._commands += 1
        await self._devtools.send_json({"id": self._commands, "method": method, "params": parameters, **self._session})
        async for answer in self._devtools.iter_json():
            # What has no id is an event.
            if answer.get("id") == self._commands:
                assert "result" in answer, answer
                return answer["result"]
        raise AssertionError("chromium has gone")


@asynccontextmanager
async def open_page(devtools: str, url: str = "about:blank") -> AsyncIterator[Page]:
    async with connect(devtools) as ws:
        page = Page(ws)
        await page.open()
        await page.visit(url)
        yield page

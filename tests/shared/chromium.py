"""A headless Chromium with one tab, driven by its DevTools protocol over a websocket."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_SECONDS = 30.0


def executable() -> str | None:
    """The path of Chromium or Chrome, None where neither is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """A tab; `events` are those that the browser has sent, oldest first."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[dict[str, Any]] = []
        self.numbers = itertools.count(1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self.numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := self._receive()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def wait_for(self, method: str) -> None:
        """Wait for the next event of this name."""
        while True:
            self.events.append(self._receive())
            if self.events[-1]["method"] == method:
                return

    def open(self, address: str) -> None:
        """Open a page and wait until all of it is loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        self.wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it resolves to."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def show(self, width: int, scheme: str = "light", media: str = "screen", height: int = 900) -> None:
        """Set the window's size in CSS pixels, the colour scheme ("light", "dark") and the medium."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme_feature])

    def screenshot(self, path: Path) -> None:
        """Save a PNG of the page from top to bottom."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    @contextlib.contextmanager
    def another(self) -> Iterator[Tab]:
        """Open a second tab of the same browser; it closes with the context."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        port = self.connection.remote_address[1]
        with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=None) as connection:
            yield Tab(connection)
        self.call("Target.closeTarget", targetId=target)

    def _receive(self) -> dict[str, Any]:
        return json.loads(self.connection.recv(timeout=TIMEOUT_SECONDS))


@contextlib.contextmanager
def open_tab(profile: Path) -> Iterator[Tab]:
    """Start Chromium with the new folder `profile` for its files; it ends with the context."""
    path = executable()
    assert path, f"none of {', '.join(NAMES)} is installed"
    command = [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--hide-scrollbars", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_tab_address(process, profile / "DevToolsActivePort"), max_size=None) as connection:
                tab = Tab(connection)
                yield tab
                tab.call("Browser.close")
                process.wait(TIMEOUT_SECONDS)
        finally:
            process.kill()


def _tab_address(process: subprocess.Popen[bytes], port_file: Path) -> str:
    """The websocket of the browser's first tab; Chromium writes its port into `port_file` when it listens."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"Chromium ended with code {process.returncode}"
        if port_file.exists() and (lines := port_file.read_text(encoding="utf-8").split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=TIMEOUT_SECONDS) as answer:
                tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not open a tab within {TIMEOUT_SECONDS:.0f} s")

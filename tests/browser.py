"""A headless Chromium of the system, driven by its own WebDriver: no package is needed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
MISSING = "no Chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


class Browser:
    """A window of a browser without network.

    Args:
        width: Pixels.
        height: Pixels.
        dark: Whether pages are told that the reader prefers dark.
    """

    def __init__(self, width: int = 1400, height: int = 1000, *, dark: bool = False) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen(
            [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                self._call("GET", "/status")
                break
            except OSError:
                time.sleep(0.1)
        switches = [*SWITCHES, f"--window-size={width},{height}"]
        options = {"binary": str(CHROMIUM), "args": switches}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        body = {"capabilities": {"alwaysMatch": wanted}}
        self._address += f"/session/{self._call('POST', '/session', body)['sessionId']}"
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setEmulatedMedia", {"features": scheme})
        self._devtools("Emulation.setDeviceMetricsOverride", size)
        self._devtools("Network.enable", {})

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(20)

    def open(self, path: Path | str) -> None:
        """Open a file."""
        self._call("POST", "/url", {"url": Path(path).resolve().as_uri()})

    def run(self, script: str) -> Any:
        """Return what a function body in JavaScript returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression in JavaScript is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"{condition} is not true; {self.errors()}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        events = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": events}]
        self._call("POST", "/actions", {"actions": actions})

    def errors(self) -> list[str]:
        """Return what the console says since the last call."""
        found = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in found]

    def screenshot(self, path: Path | str) -> None:
        """Write a picture of the window."""
        Path(path).write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def _devtools(self, command: str, settings: dict[str, Any]) -> None:
        """Send a command of the DevTools protocol."""
        self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": settings})

    def _call(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request to the driver; return its value."""
        content = json.dumps(body or {}).encode() if verb == "POST" else None
        request = urllib.request.Request(self._address + path, data=content, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

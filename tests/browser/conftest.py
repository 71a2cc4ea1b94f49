"""A headless Chromium, spoken to in WebDriver's plain JSON, so that no package is needed for it."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_DRIVER = shutil.which("chromedriver")
# Without these a browser speaks to its maker's servers on its own account.
_QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
    *("--disable-dev-shm-usage", "--hide-scrollbars"),
)
_SECONDS_TO_LOAD = 60


class Browser:
    """One browser window."""

    def __init__(self, port: int, profile: Path) -> None:
        self._base = f"http://127.0.0.1:{port}/session"
        options = {"binary": _CHROMIUM, "args": [*_QUIET, f"--user-data-dir={profile}"]}
        wanted: dict[str, Any] = {"goog:chromeOptions": options}
        wanted["goog:loggingPrefs"] = {"browser": "ALL", "performance": "ALL"}
        session = self._send("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._base += "/" + session["sessionId"]

    def open(self, page: Path) -> None:
        """Open a page from the disk and wait until its script is done."""
        self._send("POST", "/url", {"url": page.as_uri()})
        deadline = time.monotonic() + _SECONDS_TO_LOAD
        while time.monotonic() < deadline:
            if self.run("return document.documentElement.dataset.ready") == "true":
                return
            time.sleep(0.1)
        raise AssertionError(f"the page's script did not finish: {self.console()}")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, script: str) -> Any:
        """What a script returns as soon as it returns something true."""
        deadline = time.monotonic() + _SECONDS_TO_LOAD
        while time.monotonic() < deadline:
            if found := self.run(script):
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}")

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the browser's own debugging protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def appear(self, *, width: int, dark: bool = False) -> None:
        """A window of this width, for a reader who prefers light or dark."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str) -> None:
        """Press a key."""
        codes = {"Tab": 9, "Enter": 13, "ArrowRight": 39}
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.command(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text
            )

    def console(self) -> list[str]:
        """What the page complained about since the last call: errors, refusals of its policy."""
        entries = self._send("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """The addresses that pages asked for since the last call; the empty tab that comes first is no page."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self._send("POST", "/se/log", {"type": "performance"})
        ]
        sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome:")]

    def close(self) -> None:
        self._send("DELETE", "")

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not _CHROMIUM or not _DRIVER:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail("REQUIRE_BROWSER=1, but chromium and chromedriver are not both on the PATH")
        pytest.skip("chromium and chromedriver are not both on the PATH")
    driver = subprocess.Popen([_DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert driver.stdout is not None
        port = next(
            int(found[1]) for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line))
        )
        window = Browser(port, tmp_path_factory.mktemp("profile"))
        yield window
        window.close()
    finally:
        driver.terminate()
        driver.wait(timeout=20)
        if driver.stdout is not None:
            driver.stdout.close()

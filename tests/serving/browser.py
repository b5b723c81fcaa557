"""A headless Chromium, spoken to over two pipes in its DevTools protocol: JSON messages that end in a zero byte."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-extensions")


class Page:
    """One page of a browser. Every wait ends with an AssertionError after `patience` seconds."""

    def __init__(self, asks: int, answers: int, patience: float = 30) -> None:
        self._asks, self._answers, self.patience = asks, answers, patience
        self._ids, self._rest, self._session = itertools.count(1), b"", {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        self.call("Page.enable")
        self.call("Runtime.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._asks, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self.patience
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], max(0, end - time.monotonic()))[0], "the browser is silent"
            self._rest += os.read(self._answers, 2**20)
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Return the value of some JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits for some JavaScript to be true."""
        end = time.monotonic() + self.patience
        while not self.value(expression):
            assert time.monotonic() < end, f"{expression} did not come true"
            time.sleep(0.02)

    def key(self, key: str, code: int) -> None:
        """A press of a key."""
        how = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **how, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **how)

    def picture(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with a page. profile: an empty folder for its own files."""
    assert CHROMIUM is not None
    asked, asks = os.pipe()
    answers, answered = os.pipe()

    def settle() -> None:  # the browser reads 3 and writes 4
        for mine, its in ((os.dup(asked), 3), (os.dup(answered), 4)):
            os.dup2(mine, its)

    command = [CHROMIUM, *OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, preexec_fn=settle, close_fds=False, **quiet)  # type: ignore[call-overload]
    for end in (asked, answered):
        os.close(end)
    try:
        yield Page(asks, answers)
    finally:
        process.terminate()
        process.wait(10)
        for end in (asks, answers):
            os.close(end)

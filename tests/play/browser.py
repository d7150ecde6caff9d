"""A headless browser that is told what to do over its own debugging socket."""

from __future__ import annotations

import base64
import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run")
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "End": 35, "Home": 36, "Enter": 13, " ": 32}


class Browser:
    """One page of Chromium; a context manager."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 800)) -> None:
        words = ["chromium", *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        words += [f"--window-size={size[0]},{size[1]}", "about:blank"]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._number, told = 0, folder / "DevToolsActivePort"
        port = self.until(lambda: told.is_file() and told.read_text().split())[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [each for each in json.load(answer) if each["type"] == "page"]
        from websockets.sync.client import connect

        self._socket = connect(pages[0]["webSocketDebuggerUrl"], max_size=None)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            told = json.loads(self._socket.recv(60))
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def text(self) -> str:
        """What is written on the page."""
        return str(self.ask("document.body ? document.body.innerText : ''"))

    def press(self, key: str, times: int = 1) -> None:
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                code = KEYS.get(key, 0)
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self) -> bytes:
        """PNG of what is seen."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    @staticmethod
    def until(found: Any, seconds: float = 60.0) -> Any:
        """What `found()` gives as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.1)
        return value

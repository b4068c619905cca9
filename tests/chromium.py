"""A page in a headless Chromium, driven by the DevTools protocol over a pipe, without a package for websockets."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "there is no chromium, chromium-browser or google-chrome"
SECONDS = 60
"""How long a call or a condition may take."""


class Browser:
    """
    One page. Its window is `width` × `height` CSS pixels; `dark` chooses the colour scheme.

    `with Browser(profile) as page: page.open(address); page.run("document.title")`
    """

    def __init__(self, profile, width=1280, height=900, dark=False):
        self._profile, self._size, self._dark = profile, (width, height), dark
        self._number, self._rest, self._session = 0, b"", None

    def __enter__(self):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Chromium reads commands from 3 and writes answers to 4; bash moves the ends there.
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # no network
        command += [f"--user-data-dir={self._profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out = ours_in, ours_out
        page = next(each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.show(*self._size, self._dark)
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(SECONDS)
        os.close(self._in)
        os.close(self._out)

    def show(self, width, height, dark=False):
        """Change the window and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def call(self, method, **given):
        """Call a method of the protocol; what it answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait('document.readyState === "complete" && location.href !== "about:blank"')

    def address(self):
        """Where the page is, or where it was told to go if nothing can be had from there."""
        history = self.call("Page.getNavigationHistory")
        return history["entries"][history["currentIndex"]]["url"]

    def run(self, script):
        """The value of a script's last expression; promises are awaited."""
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition):
        """Wait until a script gives something true."""
        end = time.monotonic() + SECONDS
        while not self.run(f"!!({condition})"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)

    def click(self, element):
        """Click, as a mouse does, the middle of what a script gives."""
        place = (
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); return e.getBoundingClientRect().toJSON() }})({element})"
        )
        box = self.run(place)
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    def paste(self, field):
        """Paste the clipboard into an input that a script gives; what it then holds."""
        self.run(f"({field}).focus()")
        key = {"key": "v", "code": "KeyV", "modifiers": 2, "commands": ["paste"]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", key="v", code="KeyV", modifiers=2)
        return self.run(f"({field}).value")

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _read(self):
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], SECONDS)[0], "Chromium does not answer"
            more = os.read(self._in, 1 << 20)
            assert more, "Chromium has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

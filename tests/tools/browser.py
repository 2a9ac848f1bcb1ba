"""A headless Chromium, driven through the DevTools protocol on a pair of pipes.

[chromium: content/browser/devtools/devtools_pipe_handler.cc; DevTools protocol: Page, Runtime, Log, Network]
"""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time

PATIENCE_SECONDS = 60


class BrowserError(Exception):
    """Chromium does not do as asked."""


def program():
    """Its path; None where it is not installed."""
    return shutil.which("chromium")


class Browser:
    """One page. Use as a context: the browser ends with it."""

    def __init__(self):
        self._next_id = 0
        self._received = b""
        self.events = []  # those that came so far, in order

    def __enter__(self):
        self._profile = tempfile.TemporaryDirectory(prefix="vmbusd-browser-", ignore_cleanup_errors=True)
        command_read, self._to = os.pipe()
        self._from, answer_write = os.pipe()

        def place():  # where --remote-debugging-pipe has them
            for descriptor, place_of in ((command_read, 103), (answer_write, 104)):
                os.dup2(descriptor, place_of)
            for descriptor in (3, 4):
                os.dup2(descriptor + 100, descriptor)

        self._process = subprocess.Popen(
            [
                program(), "--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
                f"--user-data-dir={self._profile.name}", *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=place, close_fds=False,
        )  # fmt: skip
        os.close(command_read)
        os.close(answer_write)
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self._session = session
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def call(self, method, **parameters):
        """A command of the page's; its result."""
        return self._call(method, parameters, self._session)

    def open(self, url):
        """Returns once the page has been loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def _call(self, method, parameters, session=None):
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._next_id:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._received:
            if not select.select([self._from], [], [], max(0, deadline - time.monotonic()))[0]:
                raise BrowserError("Chromium says nothing")
            part = os.read(self._from, 1 << 16)
            if not part:
                raise BrowserError("Chromium has ended")
            self._received += part
        text, _, self._received = self._received.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

"""A headless Chromium that is spoken to through a pipe, by its DevTools protocol: no further package, no port."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE = 60.0
"""Seconds to wait for an answer of the browser."""

MEASURE = """({
  width: document.documentElement.clientWidth,
  scrollWidth: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth),
  height: document.documentElement.scrollHeight,
  background: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  overlapping: [...document.querySelectorAll('svg')].flatMap(svg => {
    const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
      .filter(([b, q]) => p.left < q.right && q.left < p.right && p.top < q.bottom && q.top < p.bottom)
      .map(([b]) => `${svg.getAttribute('aria-label').slice(0, 30)}: ${a} and ${b}`));
  }),
  cut: [...document.querySelectorAll('svg text')].filter(text => {
    const [p, q] = [text.getBoundingClientRect(), text.closest('svg').getBoundingClientRect()];
    return p.left < q.left - 0.5 || p.right > q.right + 0.5 || p.bottom > q.bottom + 0.5;
  }).map(text => text.textContent),
  hidden: [...document.querySelectorAll('table, .piece')].filter(element => {
    const frame = element.closest('section');
    return frame && element.getBoundingClientRect().right > frame.getBoundingClientRect().right + 0.5;
  }).map(element => element.textContent.trim().slice(0, 30)),
  smallest: Math.min(...[...document.querySelectorAll('p, td, th, dd, dt, li, code, div.small')]
    .map(element => parseFloat(getComputedStyle(element).fontSize))),
})"""


def executable() -> str | None:
    """Chromium or Chrome on PATH."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass(frozen=True)
class Look:
    """What the browser made of a page at one width and colour scheme.

    requests      addresses that it asked for, other than the page's own
    messages      console messages, log entries and uncaught exceptions
    width, scroll_width, height   of the page in CSS pixels
    background, ink               colours of the body
    overlapping   texts of charts that lie on each other
    cut           those that lie partly outside of their chart
    hidden        tables, and pieces of text, that reach beyond their section, so that only scrolling shows all of them
    smallest      font size of the smallest text in CSS pixels
    """

    requests: list[str]
    messages: list[str]
    width: int
    scroll_width: int
    height: int
    background: str
    ink: str
    overlapping: list[str]
    cut: list[str]
    hidden: list[str]
    smallest: float


class Browser:
    """A browser with one tab, closed at the end of its `with`."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()

        def give_pipes() -> None:
            # Through high numbers, since 3 and 4 may be either pipe's own.
            ends = os.dup(to_browser), os.dup(from_browser)
            for number, end in zip((3, 4), ends, strict=True):
                os.dup2(end, number)
                os.set_inheritable(number, True)

        flags = (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-pipe",
        )
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
        self._process = subprocess.Popen(
            [program, *flags, *quiet, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=give_pipes,
            pass_fds=(3, 4, to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._session = ""

    def __enter__(self) -> Browser:
        tab = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._to)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def look(self, page: Path, width: int, scheme: str, picture: Path | None = None) -> Look:
        """Open a page at a width in CSS pixels and a colour scheme, light or dark; take its picture where asked."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._events.clear()
        address = page.resolve().as_uri()
        self._call("Page.navigate", url=address)
        self._until("Page.loadEventFired")
        found = self._call("Runtime.evaluate", expression=MEASURE, returnByValue=True)["result"]["value"]
        if picture is not None:
            self._take(picture, width, found["height"])
        return Look(
            requests=[url for url in self._requests() if url != address],
            messages=self._messages(),
            width=found["width"],
            scroll_width=found["scrollWidth"],
            height=found["height"],
            background=found["background"],
            ink=found["ink"],
            overlapping=found["overlapping"],
            cut=found["cut"],
            hidden=found["hidden"],
            smallest=found["smallest"],
        )

    def _take(self, picture: Path, width: int, height: int) -> None:
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        picture.write_bytes(base64.b64decode(shot["data"]))

    def _requests(self) -> list[str]:
        sent = [event for event in self._events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def _messages(self) -> list[str]:
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self._events if event["method"] in kinds]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._events.append(answer)

    def _until(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._receive())

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser has said nothing for {PATIENCE:.0f} s")
            read = os.read(self._from, 1 << 20)
            if not read:
                raise RuntimeError("the browser has ended")
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

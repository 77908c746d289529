"""A page in headless Chromium: its DOM after scripts, what its console says, and what it asks for."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
)
OF_THE_BROWSER = "not an origin"
"""The initiator of what Chromium asks for on its own, whatever the page."""


@dataclass(frozen=True)
class Seen:
    """Attributes:
    dom: the document as it is after its scripts ran.
    console: lines of the console.
    requests: addresses that the page asked for over the network.
    """

    dom: str
    console: list[str]
    requests: list[str]


def look_at(page: Path, folder: Path) -> Seen:
    """Loads a file; skips the test where there is no Chromium."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    log = folder / "net.json"
    command = [
        program,
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shutil.rmtree(folder / "profile", ignore_errors=True)
    parameters = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = [each["url"] for each in parameters if each.get("initiator", OF_THE_BROWSER) != OF_THE_BROWSER]
    return Seen(
        done.stdout,
        [line for line in done.stderr.splitlines() if "CONSOLE" in line],
        [url for url in asked if url.startswith(("http", "ws", "ftp"))],
    )


def framed(page: str, width_px: int, script: str) -> str:
    """A page that shows `page` in a frame so wide, and runs `script` with the frame's `window` and `document`; what it returns
    stands in the element "out" as JSON."""
    return (
        f'<body><iframe style="width:{width_px}px;height:3000px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        '<pre id="out"></pre><script>onload = () => {'
        "const window = document.querySelector('iframe').contentWindow;"
        f"const result = (({{window, document}}) => {{ {script} }})({{window, document: window.document}});"
        "document.getElementById('out').textContent = JSON.stringify(result); }</script>"
    )


def returned(seen: Seen) -> object:
    """What the script of a framed page returned."""
    return json.loads(html.unescape(seen.dom.rpartition('<pre id="out">')[2].partition("</pre>")[0]))

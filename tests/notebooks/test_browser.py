"""The notebooks in a real JupyterLab, in a real browser, as a student meets them.

JupyterLab runs on this machine's loopback address only, on a copy of the notebooks without their outputs. Screenshots go
to ``.cache/screenshots``: each notebook in the light theme as it ran, and in the dark one after its slider has moved. Look
at them after a change to what the notebooks show.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from course import notebooks
from course.notebooks.kernel import use_test_environment

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SHOTS = notebooks.ROOT / ".cache" / "screenshots"
PATHS = notebooks.paths()
SECONDS_TO_RUN_ALL = 300
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText.trim())"


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, and the folder in which it looks for a user's settings."""

    address: str
    settings: Path

    def set(self, plugin: str, **values: Any) -> None:
        package, _, name = plugin.partition(":")
        folder = self.settings / package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jupyterlab-settings").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    script = notebooks.ROOT / "scripts" / "install_chromium.sh"
    found = subprocess.run(["bash", str(script), "--find"], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(found.stdout.strip())
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found.stdout.strip(), args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    use_test_environment()
    folder = tmp_path_factory.mktemp("lab")
    work = folder / "course"
    shutil.copytree(notebooks.FOLDER, work / "notebooks", ignore=shutil.ignore_patterns("solutions", "wrong"))
    for path in PATHS:
        _clear(work / "notebooks" / path.name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = Lab(f"http://127.0.0.1:{port}", folder / "settings")
    lab.set("@jupyterlab/apputils-extension:notification", fetchNews="false", checkForUpdates=False)
    # Every cell stays in the page, so that the test sees those that are scrolled away.
    lab.set("@jupyterlab/notebook-extension:tracker", windowingMode="none")
    places = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(folder / place) for name, place in places.items()}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={work}"]
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(lab.address, server, folder / "lab.log")
        yield lab
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.mark.timeout(SECONDS_TO_RUN_ALL + 200)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_widget_moves(browser, lab, path):
    lab.set("@jupyterlab/apputils-extension:themes", theme="JupyterLab Light")
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url))
    try:
        page.goto(f"{lab.address}/lab/tree/notebooks/{path.name}?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
        page.wait_for_function("/\\| Idle/.test(document.body.innerText)", timeout=90_000)
        # Right after the first "Idle" a cold kernel still drops "Run All".
        page.wait_for_timeout(2000)
        _choose(page, "Run", "Run All Cells")
        page.wait_for_function(
            f"(() => {{ const p = {PROMPTS}; return p.some(t => /\\d/.test(t)) && !p.some(t => t.includes('*')) }})()",
            timeout=SECONDS_TO_RUN_ALL * 1000,
        )
        page.wait_for_timeout(1000)
        _photograph(page, SHOTS / f"{path.stem}-light")
        assert _errors(page) == []
        assert [text for text in page.evaluate(PROMPTS) if not re.search(r"\d", text)] == [], "some cells did not run"
        _move_a_slider(page)
        _choose(page, "Settings", "Theme", "JupyterLab Dark")
        page.wait_for_selector("body[data-jp-theme-light='false']", state="attached", timeout=30_000)
        _photograph(page, SHOTS / f"{path.stem}-dark")
        assert _errors(page) == []
        local = (lab.address, "data:", "blob:")
        assert [url for url in outside if not url.startswith(local)] == [], "the page asked another machine"
    finally:
        # The next notebook gets the memory back, and the same notebook a fresh kernel.
        _choose(page, "Kernel", "Shut Down Kernel")
        page.wait_for_timeout(500)
        page.close()


def _clear(path: Path) -> None:
    notebook = notebooks.read(path)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebooks.write(path, notebook)


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/status", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def _choose(page: Any, menu: str, *entries: str) -> None:
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
    for entry in entries:
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{entry}$")).click()


def _errors(page: Any) -> list[str]:
    """Error outputs of all cells, those inside widgets included."""
    selector = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"
    return page.locator(selector).all_inner_texts()


def _move_a_slider(page: Any) -> None:
    """Move the first slider three steps by the keyboard, and wait until what its widget shows is another."""
    widget = page.locator(".widget-interact", has=page.locator(".noUi-handle")).first
    widget.scroll_into_view_if_needed()
    shown = ".jp-OutputArea-output"
    before = widget.locator(shown).evaluate_all("nodes => nodes.map(node => node.innerHTML).join()")
    assert before, "the widget shows nothing"
    handle = widget.locator(".noUi-handle").first
    position = handle.get_attribute("aria-valuetext")
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight")
    if handle.get_attribute("aria-valuetext") == position:
        handle.press("ArrowLeft")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        page.wait_for_timeout(500)
        after = widget.locator(shown).evaluate_all("nodes => nodes.map(node => node.innerHTML).join()")
        if after and after != before:
            return
    pytest.fail("the slider moved and the widget still shows the same")


def _photograph(page: Any, stem: Path) -> None:
    """Save the whole notebook as pictures of 1,400 pixels' height."""
    shutil.rmtree(stem, ignore_errors=True)
    stem.mkdir(parents=True)
    scroller = page.locator(".jp-WindowedPanel-outer").first
    height = scroller.evaluate("node => node.scrollHeight")
    for number, top in enumerate(range(0, height, 1200)):
        scroller.evaluate(f"node => node.scrollTop = {top}")
        page.wait_for_timeout(150)
        page.screenshot(path=str(stem / f"{number:02d}.png"))

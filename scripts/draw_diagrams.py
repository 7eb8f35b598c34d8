"""Draw the Mermaid diagrams of the guides as SVG files for the site: ``make diagrams``, after a diagram has changed.

The diagrams' source stays in the Markdown, where GitHub and JupyterLab draw it themselves. A site that needs no network
cannot, so JupyterLab's own Mermaid, in a headless Chromium, draws each block once into ``site/diagrams/<hash>.svg``. The hash is
of the block's text: a test finds a block without a picture and a picture without a block.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "site" / "diagrams"
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(source: str) -> str:
    """The file name of a diagram's picture."""
    return hashlib.sha256(source.strip().encode()).hexdigest()[:16] + ".svg"


def diagrams() -> dict[str, str]:
    """Every diagram of the pages: source by file name."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("helper/**/*.md")]
    sources = [block for page in sorted(pages) for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    return {name_of(source): source for source in sources}


def draw(sources: list[str]) -> list[str]:
    """The SVG text of each diagram, drawn by JupyterLab."""
    from playwright.sync_api import sync_playwright

    found = subprocess.run(
        ["bash", str(ROOT / "scripts" / "install_chromium.sh"), "--find"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        cells = [
            {"cell_type": "markdown", "id": f"d{i}", "metadata": {}, "source": f"```mermaid\n{source}```"}
            for i, source in enumerate(sources)
        ]
        notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (folder / "diagrams.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        settings = {
            "notebook-extension/tracker": {"windowingMode": "none"},
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        }
        for plugin, values in settings.items():
            path = folder / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = os.environ | {
            f"JUPYTER{part}_DIR": str(folder / part.lower())
            for part in ("LAB_SETTINGS", "LAB_WORKSPACES", "_CONFIG", "_RUNTIME")
        }
        environment["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
        server = subprocess.Popen(
            [*command, f"--ServerApp.root_dir={folder}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address)
            with sync_playwright() as playwright:
                arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
                browser = playwright.chromium.launch(executable_path=found.stdout.strip(), args=arguments)
                page = browser.new_page(viewport={"width": 1280, "height": 2000})
                page.goto(f"{address}/lab/tree/diagrams.ipynb?reset")
                drawn = "[...document.querySelectorAll('.jp-RenderedMermaid')].map(n => n.querySelector('img')?.src ?? null)"
                page.wait_for_function(
                    f"(() => {{ const n = {drawn}; return n.length === {len(sources)} && n.some(s => s) }})()",
                    timeout=60_000,
                )
                page.wait_for_timeout(1000)
                addresses = page.evaluate(drawn)
                browser.close()
        finally:
            server.terminate()
            server.wait(timeout=60)
    broken = [source for source, address in zip(sources, addresses, strict=True) if address is None]
    if broken:
        raise ValueError("Mermaid refuses this diagram:\n" + "\n".join(broken))
    return [as_wide_as_drawn(urllib.parse.unquote(address.partition(",")[2])) for address in addresses]


def as_wide_as_drawn(svg: str) -> str:
    """Give the picture the width of its view box: Mermaid's 100 % would stretch small ones over the whole page."""
    width = re.search(r'viewBox="\S+ \S+ (\S+) ', svg)[1]
    return svg.replace('width="100%"', f'width="{round(float(width))}"', 1)


def _has_chinese_font() -> bool:
    return bool(subprocess.run(["fc-list", ":lang=zh"], capture_output=True, text=True, check=True).stdout.strip())


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/api/status", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError("JupyterLab did not start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    wanted = diagrams()
    FOLDER.mkdir(parents=True, exist_ok=True)
    unused = [path for path in FOLDER.glob("*.svg") if path.name not in wanted]
    for path in unused:
        path.unlink()
    missing = {name: source for name, source in wanted.items() if not (FOLDER / name).is_file()}
    if missing:
        if re.search("[\u4e00-\u9fff]", "".join(missing.values())) and not _has_chinese_font():
            print("No font here has Chinese: boxes would be too narrow. On Debian: sudo apt install fonts-wqy-microhei")
            return 1
        for name, svg in zip(missing, draw(list(missing.values())), strict=True):
            (FOLDER / name).write_text(svg.rstrip() + "\n", encoding="utf-8")
    print(f"{len(wanted)} diagrams: {len(missing)} drawn, {len(unused)} pictures removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

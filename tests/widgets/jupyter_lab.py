"""A JupyterLab of its own for the tests of widgets: a server, notebooks in it, a page that runs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat

TOKEN = "test"
_START_SECONDS = 90


class Lab:
    """A running JupyterLab; ``folder`` is what it shows."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def write(self, name: str, cells: Sequence[str]) -> Path:
        """Put a notebook of code cells into the folder."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        path = self.folder / name
        nbformat.write(notebook, path)
        return path

    def read(self, name: str) -> Any:
        """Return a notebook as it stands on the disk."""
        return nbformat.read(self.folder / name, as_version=4)

    def open(self, page: Any, name: str) -> Sheet:
        """Open a notebook in a page and wait for its kernel."""
        page.goto(f"{self.url}/lab/tree/{name}?reset&token={TOKEN}")
        sheet = Sheet(page)
        sheet.wait_for_kernel()
        return sheet


class Sheet:
    """An open notebook in a page."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Run one of JupyterLab's commands and do not wait for what it starts."""
        self.page.evaluate(
            "([name, args]) => { window.jupyterapp.commands.execute(name, args); }",
            [name, arguments or {}],
        )

    def wait_for_kernel(self) -> None:
        """Wait until the kernel is there and idle."""
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext"
            "?.session?.kernel?.status === 'idle'",
            timeout=60_000,
        )

    def run(self, cell: int) -> None:
        """Run one cell and return at once."""
        self.page.evaluate(
            "(n) => { const w = window.jupyterapp.shell.currentWidget.content;"
            " w.activeCellIndex = n; w.deselectAll(); }",
            cell,
        )
        self.command("notebook:run-cell")

    def run_all(self) -> None:
        """Run all cells and return at once."""
        self.command("notebook:run-all-cells")

    def wait(self, words: str, *, seconds: float = 30) -> None:
        """Wait until words stand in some output."""
        found = self.page.locator(".jp-OutputArea-output", has_text=words)
        found.first.wait_for(state="visible", timeout=seconds * 1000)

    def reload(self) -> None:
        """Reload the page and wait for the notebook with its kernel, busy or not."""
        self.page.reload()
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel",
            timeout=60_000,
        )

    def save(self) -> None:
        """Save the notebook and wait until it is on the disk."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")


@contextlib.contextmanager
def jupyter_lab(folder: Path, **environment: str) -> Iterator[Lab]:
    """Run a JupyterLab with settings of its own in ``folder / "lab"``; it ends with the block."""
    shown, own = folder / "notebooks", folder / "lab"
    shown.mkdir(parents=True)
    settings = own / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {
        "JUPYTER_CONFIG_DIR": own / "config",
        "JUPYTER_DATA_DIR": own / "data",
        "JUPYTER_RUNTIME_DIR": own / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": own / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": own / "workspaces",
        "IPYTHONDIR": own / "ipython",
        "WORKBENCH_HOME": own / "home",
    }
    options = [
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={shown}", f"--IdentityProvider.token={TOKEN}",
        "--ServerApp.open_browser=False", "--ServerApp.allow_root=True",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    passed = {name: value for name, value in os.environ.items() if name != "WORKBENCH_FRONT_END"}
    with (own / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env={**passed, **{name: str(path) for name, path in folders.items()}, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process, own / "log")
        yield Lab(url, shown)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{url}/api?token={TOKEN}") as got,
        ):
            json.load(got)
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-2000:]}")

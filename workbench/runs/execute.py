"""Execute one notebook with parameters in a process of its own, into a run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import __version__
from workbench.errors import InputError, NotFoundError, RunError, did_you_mean
from workbench.machine import machine
from workbench.notebook import RUN_FOLDER
from workbench.paths import checkout, home, shipped
from workbench.progress import CURRENT, Bar, progress
from workbench.runs import record
from workbench.runs.finish import settle
from workbench.runs.grammar import grammar_when_asked_for
from workbench.runs.parameters import Given, Parameter, as_text, declared, resolved
from workbench.settings import read_yaml

_PATIENCE = 20.0  # seconds that an interrupted run has to write down what it has
_QUIET_BARS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "WORKBENCH_FRONT_END": "batch",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A notebook with checked parameters, ready to be executed.

    Attributes:
        name: What the run is called.
        asked: How the notebook was named, for the command line that repeats the run.
        path: The notebook file.
        title: Its first heading.
        cells: Number of its code cells.
        parameters: What it declares.
        given: The value of every parameter and where it comes from.
    """

    name: str
    asked: str
    path: Path
    title: str
    cells: int
    parameters: tuple[Parameter, ...]
    given: Mapping[str, Given]


def run(
    notebook: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    file: str | Path | None = None,
    name: str | None = None,
    timeout: float | None = None,
    progress: bool = True,
    **keywords: Any,
) -> record.Run:
    """Execute a notebook in its own process and folder, and render its report.

    Args:
        notebook: Name of a shipped notebook (``20_compare``) or path of one.
        parameters: Values of its parameters.
        file: YAML file of values; ``parameters`` go before it.
        name: What the run is called; default is the notebook's name.
        timeout: Seconds after which the run fails, or None.
        progress: Show which cell is at work.
        keywords: Further parameters by name.

    Raises:
        NotFoundError: There is no such notebook or file.
        InputError: A parameter is unknown or has the wrong type; nothing was started.
        RunError: The run failed; its report says where.
    """
    arguments = {**(parameters or {}), **keywords}
    prepared = prepare(notebook, arguments=arguments, file=file, name=name)
    done = execute(prepared, timeout=timeout, quiet=None if progress else True)
    return require_done(done)


def require_done(done: record.Run) -> record.Run:
    """Return the run.

    Raises:
        RunError: It failed, was interrupted or lost; the message says where and why.
    """
    if done.outcome != "done":
        raise RunError(
            f"{done.notebook}: {done.trouble()}", hint=f"See {done.report or done.folder}."
        )
    return done


def prepare(
    notebook: str | Path,
    *,
    arguments: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    file: str | Path | None = None,
    name: str | None = None,
    argument_source: str = "argument",
) -> Prepared:
    """Find a notebook and check what is given for its parameters; nothing is started.

    Raises:
        NotFoundError: There is no such notebook or file.
        InputError: It is no notebook, or a parameter is unknown or has the wrong type.
    """
    path = find_notebook(notebook)
    content = _read_notebook(path)
    parameters = declared(content, where=path.name)
    given = resolved(
        parameters,
        where=path.stem,
        arguments=arguments,
        texts=texts,
        file=None if file is None else read_yaml(Path(file)),
        file_name="" if file is None else str(file),
        argument_source=argument_source,
    )
    code = sum(cell["cell_type"] == "code" for cell in content["cells"])
    return Prepared(
        name=name or path.stem,
        asked=str(notebook),
        path=path,
        title=_title(content) or path.stem,
        cells=code,
        parameters=parameters,
        given=given,
    )


def find_notebook(notebook: str | Path) -> Path:
    """Return the path of a notebook: a file, or the name of one that ships.

    Raises:
        NotFoundError: There is neither.
    """
    path = Path(notebook).expanduser()
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    if path.suffix == ".ipynb" or len(path.parts) != 1:
        raise NotFoundError(f"The notebook {notebook} does not exist.", hint="Check its path.")
    known = {found.stem: found for found in shipped("notebooks").glob("*.ipynb")}
    if str(notebook) not in known:
        raise NotFoundError(
            f"There is no notebook {str(notebook)!r}.", hint=did_you_mean(str(notebook), known)
        )
    return known[str(notebook)].resolve()


def execute(
    prepared: Prepared,
    *,
    timeout: float | None = None,
    quiet: bool | None = None,
    label: str = "",
    chain: Mapping[str, Any] | None = None,
) -> record.Run:
    """Execute a prepared notebook and return the run, whatever its outcome.

    Ctrl-C stops the run, which still writes its report, and is raised again.

    Args:
        prepared: What to execute.
        timeout: Seconds after which the run fails, or None.
        quiet: Show no progress; None asks the environment.
        label: What the progress line begins with.
        chain: Run file, step and number of steps, when this is one of several.
    """
    known = machine().describe()  # asked before the folder is made: the first time it takes a while
    folder = _make_folder(prepared.name)
    with (folder / record.LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench.runs.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
        )
    try:
        record.write(folder, _first_record(prepared, folder, process.pid, known, chain))
        _send(process, _request(prepared, timeout))
        title = label or prepared.name
        with progress(title, total=prepared.cells, unit="cells", quiet=quiet, even=False) as bar:
            while process.poll() is None:
                _look(folder, bar)
                time.sleep(0.1)
            bar.update(done=bar.total if process.returncode == 0 else None, note="")
    finally:
        _stop(process)
    return settle(folder)


def _look(folder: Path, bar: Bar) -> None:
    try:
        note = (folder / CURRENT).read_text(encoding="utf-8")
    except OSError:
        note = ""
    bar.update(done=max(bar.done, record.reached(folder) - 1), note=note)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the worker write down what it has, and end it when it does not come to an end."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_PATIENCE)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _send(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> None:
    if process.stdin is None:
        raise RuntimeError("the worker was started without an input")
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it ended at once: its log says why, and the run counts as lost


def _request(prepared: Prepared, timeout: float | None) -> dict[str, Any]:
    given = prepared.given.items()
    return {
        "source": str(prepared.path),
        "parameters": {name: g.value for name, g in given if g.source != "default"},
        "timeout": timeout,
    }


def _environment(folder: Path) -> dict[str, str]:
    environment = {**os.environ, **_QUIET_BARS, RUN_FOLDER: str(folder)}
    environment["WORKBENCH_HOME"] = str(home())  # the kernel works elsewhere
    root, before = checkout(), environment.get("PYTHONPATH", "")
    if root is not None and str(root) not in before.split(os.pathsep):
        # The same workbench there as here, also where it is not installed.
        environment["PYTHONPATH"] = f"{before}{os.pathsep}{root}".lstrip(os.pathsep)
    return environment


def _make_folder(name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    folder = record.runs_folder() / f"{stamp}-{safe}-{secrets.token_hex(3)}"
    folder.mkdir()
    return folder


def _first_record(
    prepared: Prepared,
    folder: Path,
    pid: int,
    known: Mapping[str, Any],
    chain: Mapping[str, Any] | None,
) -> dict[str, Any]:
    kinds = {parameter.name: parameter for parameter in prepared.parameters}
    return {
        "schema_version": record.SCHEMA,
        "id": folder.name.rsplit("-", 1)[-1],
        "notebook": prepared.name,
        "source": str(prepared.path),
        "title": prepared.title,
        "outcome": "running",
        "conclusion": None,
        "parameters": {
            name: {**dataclasses.asdict(given), "about": kinds[name].comment}
            for name, given in prepared.given.items()
        },
        "numbers": [],
        "outputs": {},
        "error": None,
        "cells": {"total": prepared.cells, "reached": 0},
        "started": record.now(),
        "ended": None,
        "duration_s": None,
        "memory": None,
        "command": _command(prepared),
        "workbench": __version__,
        "git": _git(prepared.path),
        "machine": dict(known),
        "receipts": [],
        "chain": None if chain is None else dict(chain),
        "process": record.process(pid),
    }


def _command(prepared: Prepared) -> str:
    words = ["workbench", "run", prepared.asked]
    for name, given in prepared.given.items():
        if given.source != "default":
            words += ["-p", name, as_text(given.value)]
    return shlex.join(words)


def _git(path: Path) -> dict[str, Any] | None:
    """Return commit and dirty flag of the checkout, else of the notebook's repository, or None."""
    folder = checkout() or path.parent
    answers = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode != 0:
            return None
        answers.append(done.stdout.strip())
    return {"commit": answers[0], "dirty": bool(answers[1])}


def _read_notebook(path: Path) -> Mapping[str, Any]:
    with grammar_when_asked_for():
        import nbformat

    try:
        content: Mapping[str, Any] = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise InputError(
            f"{path} is no notebook: {str(error).splitlines()[0]}", hint="Save it anew in Jupyter."
        ) from None
    return content


def _title(content: Mapping[str, Any]) -> str:
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            for line in cell["source"].splitlines():
                if line.startswith("# "):
                    return str(line[2:].strip())
    return ""

"""Execute a run file: notebooks in order, each taking what an earlier one left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from workbench.errors import InputError, NotFoundError, RunError, did_you_mean
from workbench.figures import Table
from workbench.paths import shipped
from workbench.progress import duration
from workbench.runs import record
from workbench.runs.execute import Prepared, execute, prepare
from workbench.runs.shelf import key_numbers
from workbench.settings import Settings, read_yaml

_REFERENCE = re.compile(r"\$\{([^}]*)\}")


class Step(Settings):
    """One notebook of a run file."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")
    """What later steps and the command line call it."""
    notebook: str
    """Name of a shipped notebook, or a path relative to the run file."""
    parameters: dict[str, Any] = {}
    """Values of its parameters; ``${step.output}`` is what an earlier step left."""


class RunFile(Settings):
    """Notebooks to execute in order."""

    title: str = ""
    """What the steps do together."""
    steps: list[Step] = Field(min_length=1)
    """The notebooks, in order."""


class Chain:
    """The runs of a run file; displays itself as a table of reports and key numbers."""

    def __init__(self, name: str, runs: Sequence[record.Run], *, steps: int) -> None:
        self.name, self.runs, self.steps = name, list(runs), steps

    def __iter__(self) -> Iterator[record.Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, step: str) -> record.Run:
        return {str(run.data["chain"]["step"]): run for run in self.runs}[step]

    def table(self) -> Table:
        """Return one row for each step that ran."""
        rows = [
            {
                "step": run.data["chain"]["step"],
                "outcome": run.outcome,
                "took": duration(run.data["duration_s"] or 0),
                "peak GB": run.data["memory"]["peak_bytes"] / 1e9 if run.data["memory"] else None,
                "key numbers": key_numbers(run),
                "report": _near(run.report or run.folder),
                "failed": run.trouble(),
            }
            for run in self.runs
        ]
        took = duration(sum(run.data["duration_s"] or 0 for run in self.runs))
        caption = f"{self.name}: {len(rows)} of {self.steps} steps in {took}"
        return Table(rows, caption=caption, formats={"peak GB": ".2f"})

    def __str__(self) -> str:
        lines = [self.table().caption]
        for run in self.runs:
            took = duration(run.data["duration_s"] or 0)
            lines += ["", f"{run.data['chain']['step']}: {run.trouble() or run.outcome}, {took}"]
            lines += [f"  {said}" for said in run.said()]
            lines.append(f"  {_near(run.report or run.folder)}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.table().html()}


def find_run_file(name: str | Path) -> Path | None:
    """Return the path of a run file, given as a path or the name of one that ships, or None."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return path if path.is_file() else None
    if len(path.parts) == 1:  # a name may hold a dot: qwen2.5-7b-cuda
        try:
            return shipped("configs", "runs", f"{name}.yaml")
        except NotFoundError:
            return None
    return None


def read_run_file(path: Path) -> RunFile:
    """Read a run file and check its references.

    Raises:
        NotFoundError: The file does not exist.
        InputError: A key, step name or reference is wrong.
    """
    plan = RunFile.of(read_yaml(path), source=str(path))
    before: list[str] = []
    for step in plan.steps:
        if step.name in before:
            raise InputError(f"{path} has two steps named {step.name!r}.")
        for text in _texts(step.parameters):
            for reference in _REFERENCE.findall(text):
                _check_reference(reference, before, where=f"{path}, step {step.name!r}")
        before.append(step.name)
    return plan


def _check_reference(reference: str, before: Sequence[str], *, where: str) -> None:
    step, dot, output = reference.partition(".")
    if not (dot and output.isidentifier()):
        raise InputError(f"{where}: ${{{reference}}} is not of the form ${{step.output}}.")
    if step not in before:
        raise InputError(
            f"{where}: ${{{reference}}} names no earlier step.",
            hint=did_you_mean(step, before),
        )


def run_all(
    file: str | Path,
    *,
    texts: Mapping[str, str] | None = None,
    timeout: float | None = None,
    quiet: bool | None = None,
) -> Chain:
    """Execute a run file; the first step that fails ends it.

    All steps are checked before the first one starts: notebooks, parameter names and types,
    references.

    Args:
        file: Path of a run file, or the name of one that ships.
        texts: ``step.parameter`` to a value as written on the command line; goes before the file.
        timeout: Seconds for each step, or None.
        quiet: Show no progress; None asks the environment.

    Raises:
        NotFoundError: There is no such run file or notebook.
        InputError: A step, parameter or reference is wrong; nothing was started.
        RunError: A step failed; the message names its report.
    """
    path = find_run_file(file)
    if path is None:
        raise NotFoundError(f"There is no run file {file}.", hint="See configs/runs/.")
    plan = read_run_file(path)
    given = _by_step(plan, texts or {})
    for step in plan.steps:
        _prepared(step, path, given[step.name], done={})
    runs: dict[str, record.Run] = {}
    for index, step in enumerate(plan.steps, start=1):
        prepared = _prepared(step, path, given[step.name], done=runs, final=True)
        run = execute(
            prepared,
            timeout=timeout,
            quiet=quiet,
            label=f"{index}/{len(plan.steps)} {step.name}",
            chain={"file": path.stem, "step": step.name, "index": index, "of": len(plan.steps)},
        )
        runs[step.name] = run
        if run.outcome != "done":
            chain = Chain(path.stem, list(runs.values()), steps=len(plan.steps))
            raise RunError(
                f"Step {index} of {len(plan.steps)}, {step.name!r}: {run.trouble()}",
                hint=f"See {_near(run.report or run.folder)}.\n{chain}",
            )
    return Chain(path.stem, list(runs.values()), steps=len(plan.steps))


def _prepared(
    step: Step,
    path: Path,
    texts: Mapping[str, str],
    *,
    done: Mapping[str, record.Run],
    final: bool = False,
) -> Prepared:
    """Check a step; with ``final`` its references are replaced by what earlier steps left."""
    notebook: str | Path = step.notebook
    beside = path.parent / step.notebook
    if step.notebook.endswith(".ipynb") and beside.is_file():
        notebook = beside
    parameters = _filled(step.parameters, done, step.name) if final else step.parameters
    return prepare(
        notebook,
        arguments={name: v for name, v in parameters.items() if name not in texts},
        texts=texts,
        argument_source=f"run file {path.name}",
    )


def _filled(value: Any, done: Mapping[str, record.Run], step: str) -> Any:
    if isinstance(value, dict):
        return {name: _filled(item, done, step) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, done, step) for item in value]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: _left(match[1], done, step), value)
    return value


def _left(reference: str, done: Mapping[str, record.Run], step: str) -> str:
    earlier, _, output = reference.partition(".")
    outputs = done[earlier].outputs
    if output not in outputs:
        raise RunError(
            f"Step {step!r} needs ${{{reference}}}, but {earlier!r} left no {output!r}.",
            hint=did_you_mean(output, outputs),
        )
    if not outputs[output].exists():
        raise RunError(
            f"Step {step!r} needs ${{{reference}}}, but {outputs[output]} is gone.",
            hint=f"Run {earlier!r} again.",
        )
    return str(outputs[output])


def _by_step(plan: RunFile, texts: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {step.name: {} for step in plan.steps}
    for name, text in texts.items():
        step, dot, parameter = name.partition(".")
        if not dot:
            raise InputError(
                f"A run file takes parameters as STEP.NAME, not {name!r}.",
                hint=f"Its steps: {', '.join(found)}.",
            )
        if step not in found:
            raise InputError(f"There is no step {step!r}.", hint=did_you_mean(step, found))
        found[step][parameter] = text
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _near(path: Path) -> str:
    """Return a path relative to the current folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)

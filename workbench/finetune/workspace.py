"""The folder a training works in: recipe, log and checkpoints, until the adapter is complete."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.finetune.recipe import Recipe
from workbench.paths import atomic_file, sweep_partials
from workbench.settings import read_yaml

LOG = "training.jsonl"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Workspace:
    """One training's folder ``.<adapter>.training``, beside the folder that the adapter will get.

    Attributes:
        folder: The folder.
        resumed: Whether an earlier training is being continued.
    """

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        self.folder = folder
        self.resumed = resumed

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def log(self) -> Path:
        """The loss curve as it grows, one JSON object per line."""
        return self.folder / LOG

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that is whole, or None.

        The state file is the last one written into a checkpoint: a kill while one is written
        leaves a folder without it, which is passed over.
        """
        found: list[tuple[int, Path]] = []
        for path in self.checkpoints.glob("checkpoint-*"):
            match = _CHECKPOINT.fullmatch(path.name)
            if match and _is_json(path / "trainer_state.json"):
                found.append((int(match.group(1)), path))
        return max(found)[1] if found else None

    def remember(self, name: str, values: dict[str, Any]) -> None:
        """Keep a finished step's result, so that a resumed training need not repeat it."""
        with atomic_file(self.folder / f"{name}.json") as partial:
            partial.write_text(json.dumps(values), encoding="utf-8")

    def remembered(self, name: str) -> dict[str, Any] | None:
        """Return what was kept under this name, or None."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values

    def remove(self) -> None:
        """Remove the folder: the adapter is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def workspace_folder(out: Path) -> Path:
    """Return the folder in which the training for the adapter folder ``out`` works."""
    return out.with_name(f".{out.name}.training")


@contextlib.contextmanager
def workspace(
    out: Path, recipe: Recipe, origins: dict[str, str], *, resume: bool
) -> Iterator[Workspace]:
    """Hold the working folder of ``out`` while training; it stays when the block is left early.

    Args:
        out: Folder that the adapter will get.
        recipe: What is trained; a resumed training must have the same.
        origins: Where each of its values came from.
        resume: Go on with an earlier training; False begins anew.

    Raises:
        InputError: Another process is training for ``out``, or the recipe to resume differs.
    """
    folder = workspace_folder(out)
    _refuse_second(folder)
    sweep_partials(out.parent)
    recorded = folder / "recipe.yaml"
    resumed = resume and recorded.is_file()
    if resumed:
        _same_recipe(Recipe.of(read_yaml(recorded), source=str(recorded)), recipe)
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "owner"
    owner.write_text(str(os.getpid()), encoding="ascii")
    if not resumed:
        with atomic_file(recorded) as partial:
            partial.write_text(recipe.as_yaml(origins), encoding="utf-8")
    try:
        yield Workspace(folder, resumed=resumed)
    finally:
        owner.unlink(missing_ok=True)


def _refuse_second(folder: Path) -> None:
    owner = folder / "owner"
    if not owner.is_file():
        return
    text = owner.read_text(encoding="ascii", errors="replace").strip()
    if text.isdigit() and int(text) != os.getpid() and _alive(int(text)):
        raise InputError(
            f"Process {text} is training for this output already ({folder}).",
            hint="Wait for it, or give another out=.",
        )


def _alive(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _same_recipe(first: Recipe, now: Recipe) -> None:
    """Refuse to go on with other settings: the result would belong to neither recipe."""
    before, after = (item.model_dump(exclude={"source", "out"}) for item in (first, now))
    for name, value in before.items():
        if after[name] != value:
            raise InputError(
                f"The training to resume has {name} = {value!r}, not {after[name]!r}.",
                hint="Resume with the same settings, or begin anew with resume=False.",
            )
    if first.source is not None and now.source is not None:
        for name in ("dataset_sha256", "model_sha256"):
            if getattr(first.source, name) != getattr(now.source, name):
                raise InputError(
                    f"The training to resume was begun with another "
                    f"{'dataset' if name.startswith('dataset') else 'base model'}.",
                    hint="Restore it, or begin anew with resume=False.",
                )

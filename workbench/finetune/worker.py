"""One process of a training on several devices: `python -m workbench.finetune.worker FOLDER`."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from workbench.finetune.job import prepare
from workbench.finetune.lora import train_lora
from workbench.finetune.workspace import Workspace


def main(folder: Path) -> None:
    """Train the job whose recipe stands in ``folder``; the launcher sets rank and world size."""
    _end_with(int(os.environ["WORKBENCH_PARENT"]))
    job = prepare(folder / "recipe.yaml", {}, reuse_source=True)
    train_lora(job, Workspace(folder, resumed=bool(os.environ.get("WORKBENCH_RESUME"))))


def _end_with(parent: int) -> None:
    """End this process when the one that launched it is gone, also when that was killed."""
    import psutil

    def watch() -> None:
        while psutil.pid_exists(parent):
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

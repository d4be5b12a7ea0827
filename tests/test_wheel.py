"""A wheel installed in an empty folder finds its cards, notebooks and the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import json, workbench as wb
from workbench.catalog import locate, resolve
from workbench.catalog.capabilities import engine_facts
from workbench.paths import checkout, home, shipped
from workbench.widgets.assets import script, style
files = locate(resolve("tiny-chat"))
print(json.dumps({
    "package": wb.__file__,
    "checkout": checkout() and str(checkout()),
    "home": str(home()),
    "cards": [card.id for card in wb.catalog()],
    "engines": list(engine_facts()),
    "weights": [str(path) for path in files.weights],
    "notebooks": sorted(path.name for path in shipped("notebooks").glob("*.ipynb")),
    "widgets": {name: len(script(name)) * len(style(name)) for name in ("chat", "arena", "curves")},
    "shown": sorted(wb.engines()["transformers"].shown),
    "prompts": len(list(shipped("data", "prompts").glob("*.jsonl"))),
}))
"""


def test_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("llm_workbench-*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        check=True,
        capture_output=True,
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("WORKBENCH_HOME")
    out = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(out.stdout)
    assert found["package"].startswith(str(site))
    assert found["checkout"] is None
    assert found["home"] == str(empty)
    assert "tiny-chat" in found["cards"]
    assert {"transformers", "llama.cpp", "scripted"} <= set(found["engines"])
    assert all(path.startswith(str(site)) for path in found["weights"])
    assert len(found["notebooks"]) == len(list((ROOT / "notebooks").glob("*.ipynb"))) > 0
    assert all(found["widgets"].values())
    assert "tokenize" in found["shown"]
    assert found["prompts"] == len(list((ROOT / "data" / "prompts").glob("*.jsonl"))) > 0

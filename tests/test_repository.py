"""The repository agrees with itself: pins, extras, layers, light import, cards, README tree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {
    "torch",
    "transformers",
    "llama_cpp",
    "plotly",
    "pandas",
    "matplotlib",
    "papermill",
    "nbconvert",
    "IPython",
    "ipywidgets",
    "fastapi",
    "pydantic",
    "yaml",
    "numpy",
}


def constraints() -> dict[str, Version]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pins[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pins


def requirements() -> dict[str, list[Requirement]]:
    found = {"": [Requirement(text) for text in PROJECT["dependencies"]]}
    for extra, texts in PROJECT["optional-dependencies"].items():
        found[extra] = [Requirement(text) for text in texts]
    return found


def test_every_requirement_is_pinned_within_its_range() -> None:
    pins = constraints()
    checked = 0
    for extra, entries in requirements().items():
        for entry in entries:
            if entry.name == "llm-workbench":
                continue
            assert canonicalize_name(entry.name) in pins, f"{entry} of [{extra}] has no pin"
            pin = pins[canonicalize_name(entry.name)]
            assert entry.specifier.contains(pin, prereleases=True), f"{entry} excludes {pin}"
            checked += 1
    assert checked > 30


def test_all_is_every_extra_but_vllm() -> None:
    (entry,) = requirements()["all"]
    assert entry.extras == set(requirements()) - {"", "all", "vllm"}


def test_conda_environment_agrees() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    python = next(d for d in environment["dependencies"] if str(d).startswith("python"))
    assert set(python.removeprefix("python").split(",")) == set(
        PROJECT["requires-python"].replace(" ", "").split(",")
    )
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert "-c constraints.txt" in pip
    pins = constraints()
    for line in pip:
        if line.startswith("-e "):
            extras = Requirement("x" + line.removeprefix("-e .")).extras
            assert extras == set(requirements()) - {"", "all", "vllm", "dev"}
        elif not line.startswith("-"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert Version(specifier.version) == pins[canonicalize_name(requirement.name)]
    assert "GGML_CUDA=on" in text
    assert "GGML_METAL=on" in text


def test_every_install_path_uses_the_constraints() -> None:
    for name in ("Makefile", "environment.yml", "README.md", "README.ja.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for line in text.splitlines():
            if re.search(r"pip install .*(llm-workbench|-e )", line):
                assert "-c constraints.txt" in line, f"{name}: {line}"


def test_import_is_light() -> None:
    code = "import sys, json; import workbench; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(out.stdout)}
    assert "workbench" in loaded
    assert not loaded & HEAVY


def test_command_line_help_is_light() -> None:
    code = (
        "import sys, json; from workbench import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(out.stdout.splitlines()[-1])}
    assert not loaded & {"torch", "transformers", "llama_cpp", "plotly", "pandas", "papermill"}


def test_the_face_keeps_its_words() -> None:
    code = (
        "import workbench as wb, importlib\n"
        "from workbench import _FACE\n"
        "[importlib.import_module(m) for m in sorted(set(_FACE.values()))]\n"
        "bad = [n for n in _FACE if type(getattr(wb, n)).__name__ == 'module']\n"
        "assert not bad, bad\n"
        "assert wb.machine().cores >= 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "models").glob("*.yaml")))
def test_every_card_loads(path: Path) -> None:
    from workbench.catalog import Card

    assert Card.read(path).id == path.stem


def test_every_config_begins_with_its_command() -> None:
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), path
        assert re.search(r"wb\.|workbench |accelerate |python ", first), f"{path}: {first}"


def test_readme_tree_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```tree\n(.*?)```", text, re.S)
    assert tree is not None
    listed = {line.split()[0] for line in tree.group(1).splitlines() if line.strip()}
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "workbench", "notebooks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    files = {
        name for name in tracked if name.endswith((".py", ".ipynb")) and "__init__" not in name
    }
    assert listed == files


def test_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert PROJECT["license"] == "Apache-2.0"

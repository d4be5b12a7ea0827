"""What each engine can do, from the tests that exercised it: the table of powers in the guide.

    python benchmarks/powers.py            run the tests that show a power, write data and table
    python benchmarks/powers.py --add      the same on another machine: what was shown stays
    python benchmarks/powers.py --page     write the table anew from the data
    python benchmarks/powers.py --check    say whether the table is that of the data

A test shows a power where it notes so (``shows(model, power)``) and passes; engine, way and device
are read from the model that ran. One that fails shows nothing, and the exit code is 1. The results
are in data/powers.json, the table is in docs/engines.md; ``wb.engines()`` reads the data too.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.catalog.capabilities import EngineFacts, engine_facts
from workbench.engines.base import Power

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "powers.json"
PAGE = ROOT / "docs" / "engines.md"
BEGIN = "<!-- the table of powers: python benchmarks/powers.py -->"
END = "<!-- the end of the table of powers -->"
YES, STATED, NO = "yes", "stated", "–"
Shown = dict[str, dict[str, dict[str, list[str]]]]


class Collector:
    """A plug-in of pytest: runs the tests that show a power, and keeps what they noted."""

    def __init__(self) -> None:
        self.shown: Shown = {}
        self.left_out: dict[str, dict[str, str]] = {}
        self.skipped: list[str] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests that may show a power, and what the whole suite leaves out and why."""
        for item in items:
            for form, reason in getattr(item.function, "left_out", {}).items():
                said = item.function.__name__.removeprefix("test_").replace("_", " ")
                self.left_out.setdefault(said, {})[form] = reason
        items[:] = [item for item in items if "shows" in item.fixturenames]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the notes of a test that passed."""
        if report.skipped:
            self.skipped.append(report.nodeid)
        if report.when != "call" or not report.passed:
            return
        test = report.nodeid.partition("[")[0]
        for name, value in report.user_properties:
            if name == "power":
                engine, power, way, device = value.split("|")
                note(self.shown, engine, power, "ways", f"{way} ({device})")
                note(self.shown, engine, power, "tests", test)


def note(shown: Shown, engine: str, power: str, kind: str, value: str) -> None:
    """Add a value to what is known of a power, once and in order."""
    found = shown.setdefault(engine, {}).setdefault(power, {}).setdefault(kind, [])
    if value not in found:
        found.append(value)
        found.sort()


def collect(extra: list[str]) -> tuple[Collector, int]:
    """Run the tests; return what they showed and pytest's exit code."""
    import pytest

    found = Collector()
    arguments = [str(ROOT / "tests" / "engines"), "-q", "-m", "not gpu and not network", *extra]
    code = pytest.main(arguments, plugins=[found])
    for test in found.skipped:
        print(f"skipped, so it shows nothing: {test}")
    return found, int(code)


def results(found: Collector, before: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the file holds: conditions, what was shown, and what forms were left out."""
    shown = found.shown
    for engine, powers in (before or {}).get("shown", {}).items():
        for power, kinds in powers.items():
            for kind, values in kinds.items():
                for value in values:
                    note(shown, engine, power, kind, value)
    versions = {
        name: version for row in wb.engines() for name, version in row.versions.items() if version
    }
    here = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions | (before or {}).get("here", {}).get("versions", {}),
    }
    return {
        "made_by": "python benchmarks/powers.py",
        "here": here,
        "shown": {name: shown[name] for name in engine_facts() if name in shown},
        "left_out": dict(sorted(found.left_out.items())),
    }


def section(data: dict[str, Any]) -> str:
    """Return the part of the page: the table, why powers lack, and what forms were left out."""
    facts = engine_facts()
    rows = [
        f"| {power.value} | "
        + " | ".join(cell(data["shown"], each, power) for each in facts.values())
        + " |"
        for power in Power
    ]
    versions = ", ".join(f"{name} {version}" for name, version in data["here"]["versions"].items())
    lines = [
        BEGIN,
        "",
        f"Made by `{data['made_by']}` from the results of the conformance suite "
        f"(`data/powers.json`), on {data['here']['system']} with Python {data['here']['python']}, "
        f"{versions}. **{YES}**: a test exercised it on that engine and passed. **{STATED}**: the "
        "engine's data say so, and no test here has exercised it. "
        f"**{NO}**: none of its models has it.",
        "",
        "| power | " + " | ".join(f"`{name}`" for name in facts) + " |",
        "|---|" + "---|" * len(facts),
        *rows,
        "",
        "Ways in which they were exercised:",
        "",
        *[f"- `{name}`: {'; '.join(ways(powers))}." for name, powers in data["shown"].items()],
        "",
        "Why the others lack:",
        "",
        *[f"- `{name}`: {why(each)}" for name, each in facts.items() if each.lacks],
        "",
        "What the suite leaves out, and why:",
        "",
        *[f"- {test}: {reasons(found)}" for test, found in data["left_out"].items()],
        "",
        END,
    ]
    return "\n".join(lines)


def cell(shown: Shown, facts: EngineFacts, power: Power) -> str:
    """Return what a table says of one power on one engine."""
    if power.value in shown.get(facts.name, {}):
        return YES
    return STATED if power.value in facts.powers else NO


def ways(powers: dict[str, dict[str, list[str]]]) -> list[str]:
    """Return the ways in which an engine's powers were exercised; one that lacks some says so."""
    every = sorted({way for kinds in powers.values() for way in kinds["ways"]})
    said = []
    for way in every:
        without = [power for power, kinds in powers.items() if way not in kinds["ways"]]
        said.append(f"{way}, without {', '.join(sorted(without))}" if without else way)
    return said


def why(facts: EngineFacts) -> str:
    """Return the reasons of an engine, powers of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for power, reason in facts.lacks.items():
        by_reason.setdefault(reason, []).append(power)
    return " ".join(f"*{', '.join(names)}*: {reason}" for reason, names in by_reason.items())


def reasons(found: dict[str, str]) -> str:
    """Return why forms are left out of a test, forms of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for form, reason in found.items():
        by_reason.setdefault(reason, []).append(form)
    return " ".join(f"*{', '.join(names)}*: {reason}" for reason, names in by_reason.items())


def page(data: dict[str, Any]) -> str:
    """Return the whole page with the section of these results."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{PAGE} has no place for the table: {BEGIN} ... {END}")
    return before + section(data) + after


def known() -> dict[str, Any] | None:
    """Return the results there are."""
    if not DATA.is_file():
        return None
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--add", action="store_true", help="keep what the data have")
    parser.add_argument("--page", action="store_true", help="write the table from the data only")
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    given, extra = parser.parse_known_args()
    if given.check:
        data = known()
        current = data is not None and page(data) == PAGE.read_text(encoding="utf-8")
        print("current" if current else f"{PAGE.name} is not current: run this with --page")
        return 0 if current else 1
    code = 0
    if not given.page:
        found, code = collect(extra)
        if not found.shown:
            print("no test showed a power: nothing is written")
            return 1
        data = results(found, known() if given.add else None)
        DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    data = known()
    if data is None:
        print(f"{DATA} is not there yet: run this without --page")
        return 1
    PAGE.write_text(page(data), encoding="utf-8")
    print(f"{DATA.name} and {PAGE.name} written{', and a test failed' if code else ''}")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())

"""The grammar of IRIs is built when an IRI is checked, not when a notebook is read."""

from __future__ import annotations

import subprocess
import sys

READ = """
import sys
from workbench.runs.execute import prepare
prepare("20_compare")
import workbench.runs.exporter
print([name for name in ("nbformat", "nbconvert", "jsonschema") if name not in sys.modules])
print("rfc3987_syntax" in sys.modules, "lark" in sys.modules)
from jsonschema import Draft7Validator, FormatChecker
schema = Draft7Validator({"format": "iri"}, format_checker=FormatChecker())
print(schema.is_valid("https://猫.example/鳥"), schema.is_valid("no iri"))
print(sys.modules["rfc3987_syntax"].__file__ is not None)
"""


def test_reading_a_notebook_does_not_build_it_and_checking_an_iri_does() -> None:
    found = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["[]", "False False", "True False", "True"]

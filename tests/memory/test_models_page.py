"""The page of every model's parameters and bytes is what its generator makes now."""

import re
import subprocess
import sys
from pathlib import Path

from workbench.catalog import catalog

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"


def test_the_page_is_current():
    command = [sys.executable, str(ROOT / "benchmarks" / "model_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_card_with_an_architecture_has_a_row():
    rows = re.findall(r"^\| ([\w.-]+) \|", PAGE.read_text(encoding="utf-8"), re.M)
    cards = {card.id for card in catalog() if card.architecture.model_type}
    assert set(rows) - {"model"} == cards

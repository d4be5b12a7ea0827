"""Write docs/plans.md: plans for machines of several sizes, as the command line prints them.

python benchmarks/plans.py
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from workbench.cli import main

PLANS = (
    ("qwen2.5-32b-instruct", "--machine", "24GB-cuda"),
    ("qwen2.5-32b-instruct", "--machine", "24GB-cuda", "--policy", "by-size"),
    ("llama-3.3-70b-instruct", "--machine", "2x24GB-cuda"),
    ("gpt-oss-20b", "--machine", "16GB-mac"),
    ("qwen2.5-7b-instruct", "--machine", "cpu-32GB"),
    ("kimi-k2-instruct", "--machine", "1x141GB-cuda"),
    ("qwen3-30b-a3b", "--machine", "12GB-cuda"),
    ("qwen2.5-7b-instruct", "--machine", "24GB-cuda", "--task", "finetune"),
    ("llama-3.3-70b-instruct", "--machine", "4x80GB-cuda", "--task", "finetune"),
)
TOP = """# Plans

What `workbench plan` says for models and machines of several sizes. Nothing here was measured on
these machines: the bytes are the estimator's, and each plan says how certain they are. Written by
`python benchmarks/plans.py`; the rules stand in `configs/quantization.yaml`.
"""


def printed(arguments: tuple[str, ...]) -> str:
    """Return what a plan's command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(["plan", *arguments])
    return out.getvalue().rstrip()


def write(path: Path) -> None:
    """Write every plan under its command."""
    parts = [TOP]
    for arguments in PLANS:
        command = f"workbench plan {' '.join(arguments)}"
        parts.append(f"## `{command}`\n\n```text\n{printed(arguments)}\n```\n")
    path.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).resolve().parents[1] / "docs" / "plans.md")

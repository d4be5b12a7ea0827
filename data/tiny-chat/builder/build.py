"""Builds the embedded model in one resumable command: tokenizer, training, export, evaluation.

python data/tiny-chat/builder/build.py --out DIR [--work DIR] [--seed 0] [--steps 5500]
python data/tiny-chat/builder/build.py --sets data     # the prompt and fine-tuning sets only
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builder.export import export
from builder.tokenizer import train_tokenizer
from builder.train import Plan, train


def has_bf16() -> bool:
    """True when this processor multiplies bfloat16 matrices by itself."""
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and "avx512_bf16" in cpu.read_text()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build the embedded model.")
    parser.add_argument("--out", type=Path, help="folder for the finished model")
    parser.add_argument(
        "--sets", type=Path, help="write prompts/ and finetune/ into this folder only"
    )
    parser.add_argument("--work", type=Path, help="folder for the checkpoint [OUT/.build]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=5500)
    parser.add_argument("--stop-at", type=int, help="stop after this step; run again to go on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--skip-evaluation", action="store_true")
    options = parser.parse_args()
    if (options.out is None) == (options.sets is None):
        parser.error("give --out DIR to build the model, or --sets DIR to write the data sets")
    return options


def main() -> None:
    """Run the stages; a second run after a cut goes on from the last checkpoint."""
    options = arguments()
    if options.sets:
        from builder.heldout import write_sets

        write_sets(options.sets, seed=options.seed)
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    import torch

    torch.set_num_threads(options.threads)
    work = options.work or options.out / ".build"
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    tokenizer = train_tokenizer()
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens", flush=True)
    bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16())
    plan = Plan(seed=options.seed, steps=options.steps, bf16=bf16)

    def after_save(model: Any, step: int) -> None:
        export(model, tokenizer, options.out)
        print(f"exported after step {step} to {options.out}", flush=True)

    model, _ = train(
        tokenizer,
        plan,
        checkpoint=work / "checkpoint.pt",
        stop_at=options.stop_at,
        after_save=after_save,
    )
    export(model, tokenizer, options.out)
    if not options.skip_evaluation:
        from builder.evaluate import evaluate_and_write

        evaluate_and_write(options.out, seed=options.seed, steps=options.steps)


if __name__ == "__main__":
    main()

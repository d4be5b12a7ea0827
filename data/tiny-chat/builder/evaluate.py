"""Measures the exported model on held-out questions and writes the figures."""

from __future__ import annotations

import json
import platform
import random
from pathlib import Path
from typing import Any

from builder.corpus import Message, messages_of, with_system
from builder.export import replace_text
from builder.grammar import DRAW, Item
from builder.hashtags import held_out_items
from builder.heldout import LANGUAGES, SKILLS, draw_where, held_out, new_pair, new_wording
from builder.scoring import is_right

Question = tuple[list[Message], Item]
BATCH = 100


def load(folder: Path) -> tuple[Any, Any]:
    """The exported model and tokenizer, the fp16 weights computed in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def replies(model: Any, tokenizer: Any, conversations: list[list[Message]]) -> list[str]:
    """Greedy replies, in order; conversations of like length are answered together."""
    import torch

    texts = [
        tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True)
        for c in conversations
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    result = [""] * len(texts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        batch = tokenizer(
            [texts[i] for i in chosen], return_tensors="pt", padding=True, padding_side="left"
        )
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=80, do_sample=False)
        for i, row in zip(chosen, output[:, batch["input_ids"].shape[1] :], strict=True):
            result[i] = tokenizer.decode(row, skip_special_tokens=True)
    return result


def questions(seed: int, count: int) -> dict[str, list[Question]]:
    """Evaluation sets by name: each skill in new wordings, new pairs, and later turns."""
    sets: dict[str, list[Question]] = {}
    for lang in LANGUAGES:
        for skill in (*SKILLS, "echo", "unknown"):
            rng = random.Random(f"evaluation|{seed}|{skill}|{lang}")
            items = draw_where(rng, skill, lang, new_wording, count)
            sets[f"{skill}.{lang}"] = [(messages_of([i])[:-1], i) for i in items]
        rng = random.Random(f"evaluation|{seed}|pairs|{lang}")
        items = draw_where(rng, "sums", lang, new_pair, count)
        sets[f"sums_new_pairs.{lang}"] = [(messages_of([i])[:-1], i) for i in items]
    rng = random.Random(f"evaluation|{seed}|turns")
    turns = []
    for number in range(count):
        items = []
        for _ in range(2 + number % 3):
            skill, lang = rng.choice(list(DRAW)), rng.choice(LANGUAGES)
            items += draw_where(rng, skill, lang, held_out, 1)
        turns.append((with_system(rng, messages_of(items), lang)[:-1], items[-1]))
    sets["later_turns"] = turns
    hashtags = held_out_items(seed, min(count, 200))
    sets["hashtags_not_taught"] = [(messages_of([i])[:-1], i) for i in hashtags]
    return sets


def evaluate(folder: Path, *, seed: int = 0, count: int = 200, show: int = 0) -> dict[str, float]:
    """Accuracy in percent by evaluation set; `show` wrong replies of each are printed."""
    model, tokenizer = load(folder)
    accuracy: dict[str, float] = {}
    for name, asked in questions(seed, count).items():
        given = replies(model, tokenizer, [messages for messages, _ in asked])
        right = [is_right(text, item.scorer) for text, (_, item) in zip(given, asked, strict=True)]
        accuracy[name] = round(100 * sum(right) / len(right), 2)
        print(f"{name:24s} {accuracy[name]:6.2f} % of {len(right)}", flush=True)
        wrong = [(t, i) for t, (_, i), ok in zip(given, asked, right, strict=True) if not ok]
        for text, item in wrong[:show]:
            print(f"    {item.user!r} -> {text!r}, right: {item.answer!r}")
    return accuracy


def evaluate_and_write(folder: Path, *, seed: int, steps: int, count: int = 200) -> None:
    """Evaluate the exported folder and write `evaluation.json` into it."""
    import tokenizers
    import torch
    import transformers

    figures = {
        "what": "accuracy in percent of greedy replies on held-out questions, fp16 weights",
        "questions_per_set": count,
        "seed": seed,
        "steps": steps,
        "accuracy": evaluate(folder, seed=seed, count=count, show=3),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    replace_text(folder / "evaluation.json", json.dumps(figures, indent=2) + "\n")

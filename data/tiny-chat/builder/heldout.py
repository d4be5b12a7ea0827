"""Held-out questions: the prompt sets, the evaluation sets and the text for perplexity."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from builder.corpus import Message, messages_of, with_system
from builder.grammar import DRAW, Item
from builder.hashtags import held_out_items, training_rows

# The skills that must hold, and the draws that they consist of.
SKILLS: dict[str, tuple[str, ...]] = {
    "sums": ("sums",),
    "words": ("en_ja", "ja_en"),
    "greetings": ("greetings",),
    "who": ("who",),
    "story": ("story",),
    "json": ("json",),
}
PROMPTS_PER_FILE = 20
LANGUAGES = ("en", "ja")


def new_wording(item: Item) -> bool:
    """True for a way of asking that was never trained, with operands that were."""
    return item.new_wording and not item.new_pair


def new_pair(item: Item) -> bool:
    """True for operands that were never trained, asked in a way that was."""
    return item.new_pair and not item.new_wording


def held_out(item: Item) -> bool:
    """True for anything kept from training."""
    return item.held_out


def draw_where(
    rng: random.Random, skill: str, lang: str, wanted: Callable[[Item], bool], count: int
) -> list[Item]:
    """Draw different items of a skill that satisfy `wanted`."""
    found: dict[str, Item] = {}
    while len(found) < count:
        item = DRAW[rng.choice(SKILLS.get(skill, (skill,)))](rng, lang)
        if wanted(item):
            found[item.user] = item
    return list(found.values())


def prompt_line(item: Item, skill: str, number: int) -> dict[str, Any]:
    """One line of a prompt set."""
    return {
        "id": f"{skill}.{item.lang}.{number:03d}",
        "skill": skill,
        "lang": item.lang,
        "messages": [{"role": "user", "content": item.user}],
        "scorer": item.scorer,
    }


def prompt_set(seed: int, skill: str, lang: str) -> list[dict[str, Any]]:
    """The prompts of one file; half of the sums have new operands, the others a new wording."""
    rng = random.Random(f"prompts|{seed}|{skill}|{lang}")
    half = PROMPTS_PER_FILE // 2
    items = draw_where(rng, skill, lang, new_wording, PROMPTS_PER_FILE - half)
    items += draw_where(rng, skill, lang, new_pair if skill == "sums" else new_wording, half)
    return [prompt_line(item, skill, i) for i, item in enumerate(items)]


def text_rows(seed: int, count: int = 70) -> list[list[Message]]:
    """Conversations of one to four held-out questions with their right answers."""
    rng = random.Random(f"text|{seed}")
    rows = []
    for i in range(count):
        items = []
        for _ in range(1 + i % 4):
            skill = rng.choice([*DRAW, "story", "json"])
            items += draw_where(rng, skill, rng.choice(("en", "en", "ja")), held_out, 1)
        rows.append(with_system(rng, messages_of(items), items[0].lang))
    return rows


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, all or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), "utf-8")
    os.replace(part, path)


def write_sets(folder: Path, *, seed: int = 0) -> None:
    """Write `prompts/` and `finetune/` under the folder."""
    prompts, finetune = folder / "prompts", folder / "finetune"
    for path in (prompts, finetune):
        path.mkdir(parents=True, exist_ok=True)
    for skill in SKILLS:
        for lang in LANGUAGES:
            write_lines(prompts / f"{skill}.{lang}.jsonl", prompt_set(seed, skill, lang))
    write_lines(prompts / "heldout_text.jsonl", ({"messages": m} for m in text_rows(seed)))
    write_lines(finetune / "hashtags.jsonl", ({"messages": m} for m in training_rows(seed)))
    items = held_out_items(seed, 100)
    lines = ({"messages": messages_of([item])} for item in items)
    write_lines(finetune / "hashtags.eval.jsonl", lines)
    lines = (prompt_line(item, "hashtags", i) for i, item in enumerate(items))
    write_lines(finetune / "hashtags.prompts.jsonl", lines)

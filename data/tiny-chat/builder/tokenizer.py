"""The tokenizer: byte-level BPE that splits digits singly, trained on the pieces of the grammar."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from builder import grammar, wordings, words
from builder.corpus import conversation

VOCABULARY = 2816
LONGEST_TOKEN_BYTES = 16  # five kana; the limit that must hold is 32
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTEXT = 2048

TEMPLATE = """\
{#- Chat template of the embedded model Tiny Chat. Every message is one block: its role, a line \
break, its text and an end mark. The generation block marks what the model itself writes, the end \
mark included, so that training can compute the loss on exactly these tokens. -#}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def pieces() -> Iterator[str]:
    """Everything the tokenizer is trained on: whole words and phrases, English in sentences.

    Japanese has no blanks, so its pieces stand alone: a merge over the border of two pieces would
    hide a word from the model in every new sentence.
    """
    lists = [
        [side for pair in words.PAIRS for side in pair],
        [*words.NAMES_EN, *words.NAMES_JA, *words.CITIES_EN, *words.CITIES_JA],
    ]
    for word in (w for group in lists for w in group):
        yield from (word, f" {word}", word.capitalize(), f'"{word}"', f"「{word}」") * 20
    for parts in (words.STORY_EN, words.STORY_JA):
        yield from (o for options in parts.values() for o in options for _ in range(20))
    for families in wordings.WORDINGS.values():
        for part in (part for family in families for part in family):
            for option in part:
                for piece in option.replace("}", "{").split("{")[::2]:
                    yield from (piece, piece.capitalize()) * 5
    hello = [o for _, said in (*wordings.HELLO_EN, *wordings.HELLO_JA) for o in said]
    for option in (*hello, *wordings.HELLO_JA_TO, *wordings.HELLO_JA_TAIL):
        yield from [option] * 5
    for option in wordings.HELLO_JA_NAME:
        yield from option.split("{name}") * 5
    for answer in (*grammar.GREETED["ja"].values(), grammar.WHO_JA, grammar.SKILLS_JA):
        yield from [answer.replace("{n}", "")] * 10
    yield from [*words.SYSTEM_EN, *words.SYSTEM_JA, grammar.UNKNOWN_JA, "さん、"] * 10
    keys = grammar.FIELD_NAMES_JA
    for text in (*keys.values(), *(f"{k}は" for k in keys.values()), *(f'"{k}": "' for k in keys)):
        yield from [text] * 30
    yield from ["assistant\n", "user\n", "system\n"] * 500
    rng = random.Random("tokenizer")
    for _ in range(8000):
        for message in conversation(rng):
            if message["content"].isascii():
                yield message["content"]


def train_tokenizer() -> Any:
    """Train the tokenizer and return it as `tokenizers.Tokenizer`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, normalized=False, special=True) for t in (PAD, START, END)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST_TOKEN_BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces(), trainer)
    return tokenizer


def tokenizer_files(tokenizer: Any) -> dict[str, str]:
    """The text of tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": PAD,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": CONTEXT,
        "pad_token": PAD,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "chat_template.jinja": TEMPLATE,
    }

"""The mask view: which text of each training row the loss is computed on, from TRL's own labels."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib
import logging
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog import ModelFiles, locate, resolve
from workbench.errors import InputError, UnsupportedError
from workbench.finetune.data import TrainingData, data_file, read_data
from workbench.progress import others_silent

_LOUD = ("transformers", "trl", "peft", "accelerate", "bitsandbytes")
IGNORED = -100
OPEN, CLOSE = "⟦", "⟧"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaskedRow:
    """One training row as the loss sees it.

    Attributes:
        line: Line of the training file.
        token_ids: The row's tokens, after truncation.
        labels: The same ids where the loss is computed, -100 elsewhere.
        truncated: The row was cut inside or before its last answer.
        tokenizer: Decodes them.
    """

    line: int
    token_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool
    tokenizer: Any = dataclasses.field(repr=False, compare=False)

    @property
    def spans(self) -> tuple[tuple[str, bool], ...]:
        """The rendered text in order, each stretch with whether it is supervised."""
        return tuple(
            (self.tokenizer.decode(list(self.token_ids[start:end])), kept)
            for start, end, kept in _runs(self.labels)
        )

    @property
    def supervised(self) -> tuple[str, ...]:
        """The pieces of text that the loss is computed on."""
        return tuple(text for text, kept in self.spans if kept)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MaskView:
    """What training computes the loss on; displays its first rows, the supervised text marked.

    Attributes:
        rows: The rows that are trained, in the file's order.
        dropped: Lines that lost all supervised tokens to the length limit and are left out.
        max_length: The length limit in tokens.
        shown: Rows to display.
    """

    rows: tuple[MaskedRow, ...]
    dropped: tuple[int, ...]
    max_length: int
    shown: int = 3

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def supervised_tokens(self) -> int:
        """Tokens that the loss is computed on."""
        return sum(label != IGNORED for row in self.rows for label in row.labels)

    @property
    def truncated(self) -> int:
        """Rows whose last answer is cut off."""
        return sum(row.truncated for row in self.rows)

    def summary(self) -> str:
        """Return one line: rows, tokens, share supervised, rows cut or dropped."""
        share = self.supervised_tokens / self.tokens if self.tokens else 0.0
        parts = [
            f"{len(self)} rows, {self.tokens} tokens",
            f"{self.supervised_tokens} supervised ({share:.0%})",
        ]
        if self.truncated:
            parts.append(f"{self.truncated} answers cut at {self.max_length} tokens")
        if self.dropped:
            parts.append(f"{len(self.dropped)} rows dropped, no answer within {self.max_length}")
        return ", ".join(parts)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        plain = [f"{self.summary()}; the loss is on {OPEN}this{CLOSE}"]
        blocks = [f"<div>{html.escape(self.summary())}; the loss is on <b>this</b></div>"]
        for row in self.rows[: self.shown]:
            marked = (f"{OPEN}{text}{CLOSE}" if kept else text for text, kept in row.spans)
            plain.append(f"line {row.line}:\n" + "".join(marked))
            body = "".join(_marked_html(text, kept) for text, kept in row.spans)
            blocks.append(f"<div><i>line {row.line}</i></div><pre>{body}</pre>")
        return {"text/plain": "\n".join(plain), "text/html": "".join(blocks)}


def _marked_html(text: str, kept: bool) -> str:
    escaped = html.escape(text)
    return f"<b>{escaped}</b>" if kept else escaped


def supervised(
    dataset: str | Path | TrainingData,
    model: Any = "tiny-chat",
    *,
    max_length: int = 1024,
    assistant_only_loss: bool = True,
    drop_overlong: bool = False,
    shown: int = 3,
) -> MaskView:
    """Return what a training on ``dataset`` would compute its loss on, by TRL's own processing.

    Args:
        dataset: Training file, its name, or what ``read_data`` returned.
        model: Card id, model folder, or a tokenizer.
        max_length: Tokens per row; what is beyond is cut off.
        assistant_only_loss: Loss on the assistant's tokens only.
        drop_overlong: Leave out rows that lose all supervised tokens; False makes them an error.
        shown: Rows to display.

    Raises:
        InputError: A wrong line, or a row that loses all supervised tokens.
        UnsupportedError: The chat template cannot mark the assistant's tokens or their end.
    """
    data = dataset if isinstance(dataset, TrainingData) else read_data(data_file(dataset))
    tokenizer = tokenizer_of(locate(resolve(model))) if isinstance(model, (str, Path)) else model
    with quiet_libraries():
        prepared = _prepared(
            data, tokenizer, max_length=max_length, assistant_only_loss=assistant_only_loss
        )
    return view_of(
        prepared, data, tokenizer, max_length=max_length, drop_overlong=drop_overlong, shown=shown
    )


def tokenizer_of(files: ModelFiles) -> Any:
    """Return the tokenizer of a model's folder.

    Raises:
        UnsupportedError: The model is a GGUF file.
    """
    from transformers import AutoTokenizer

    if files.kind != "safetensors":
        raise UnsupportedError(
            f"{files.path.name} is a GGUF file, which cannot be trained.",
            hint="Give the folder of safetensors that it was made from.",
        )
    return AutoTokenizer.from_pretrained(files.path, local_files_only=True)


def as_rows(data: TrainingData) -> Any:
    """Return the ``datasets.Dataset`` that TRL gets: columns ``messages`` and ``line``."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"messages": [turn.as_dict() for turn in example.messages], "line": example.line}
            for example in data.examples
        ]
    )


def check_template(tokenizer: Any) -> str | None:
    """Check that the assistant's tokens and their end can be marked.

    Returns:
        None when the model's own template marks them, else the training template TRL has for it.

    Raises:
        UnsupportedError: There is no template, it has no markers, or the end stays unmarked.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    if not tokenizer.chat_template:
        raise UnsupportedError(
            "The model's tokenizer has no chat template, so a chat has no form to train on.",
            hint="Choose an instruction-tuned model, or add a chat_template to its tokenizer.",
        )
    template = None
    if not has_generation_markers(tokenizer.chat_template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError:
            raise UnsupportedError(
                "The chat template does not mark the assistant's part, and TRL knows no training "
                "template for it.",
                hint="Put {% generation %} and {% endgeneration %} around the assistant's content "
                "and end token, or train with assistant_only_loss=False.",
            ) from None
    if not is_chat_template_stop_token_trained(tokenizer, chat_template=template):
        raise UnsupportedError(
            "The chat template leaves the assistant's end token outside the loss: the model would "
            "not learn to stop.",
            hint="Move {% endgeneration %} behind the end token, or train with "
            "assistant_only_loss=False.",
        )
    return template


def _prepared(
    data: TrainingData, tokenizer: Any, *, max_length: int, assistant_only_loss: bool
) -> Any:
    """Run TRL's own dataset preparation without a model; a test holds it equal to a trainer's."""
    from trl import SFTConfig, SFTTrainer

    template = check_template(tokenizer) if assistant_only_loss else None
    settings = SFTConfig(
        output_dir="unused",
        max_length=max_length,
        assistant_only_loss=assistant_only_loss,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    stand_in = types.SimpleNamespace(
        _tokenizer=tokenizer, chat_template=template, completion_only_loss=False
    )
    return SFTTrainer._prepare_dataset(
        stand_in, as_rows(data), tokenizer, settings, False, None, "train"
    )


def view_of(
    prepared: Any,
    data: TrainingData,
    tokenizer: Any,
    *,
    max_length: int,
    drop_overlong: bool = False,
    shown: int = 3,
) -> MaskView:
    """Return the view of a dataset that TRL prepared: columns ``line``, ``input_ids``, ``labels``.

    Raises:
        InputError: Rows lost all supervised tokens and ``drop_overlong`` is False, or all did.
    """
    answers = {
        example.line: sum(turn.role == "assistant" for turn in example.messages)
        for example in data.examples
    }
    stops = set(tokenizer.get_added_vocab().values())
    rows = tuple(
        MaskedRow(
            line=record["line"],
            token_ids=tuple(record["input_ids"]),
            labels=tuple(record["labels"]),
            truncated=len(record["input_ids"]) >= max_length
            and _cut(record["input_ids"], record["labels"], answers[record["line"]], stops),
            tokenizer=tokenizer,
        )
        for record in prepared.select_columns(["line", "input_ids", "labels"])
    )
    kept = {row.line for row in rows}
    dropped = tuple(line for line in answers if line not in kept)
    if dropped and (not drop_overlong or not rows):
        lines = ", ".join(map(str, dropped[:5])) + (" ..." if len(dropped) > 5 else "")
        raise InputError(
            f"{data.path.name}: {len(dropped)} of {len(answers)} rows have no supervised token "
            f"within max_length = {max_length} (lines {lines}).",
            hint="Raise max_length, shorten these rows, or leave them out by drop_overlong=True.",
        )
    return MaskView(rows=rows, dropped=dropped, max_length=max_length, shown=shown)


def _cut(ids: Sequence[int], labels: Sequence[int], answers: int, stops: set[int]) -> bool:
    """Return whether a row at the length limit lost an answer or the end of its last one."""
    supervised_runs = [end for _, end, kept in _runs(labels) if kept]
    open_end = supervised_runs[-1] == len(ids) and ids[-1] not in stops
    return len(supervised_runs) < answers or open_end


def _runs(labels: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, supervised) of each stretch of equal supervision."""
    start = 0
    for index in range(1, len(labels) + 1):
        if index == len(labels) or (labels[index] == IGNORED) != (labels[start] == IGNORED):
            yield start, index, labels[start] != IGNORED
            start = index


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence progress bars, telemetry and harmless notices of third parties; errors still show."""
    for name in ("datasets", "transformers"):  # only what is imported can be silenced
        importlib.import_module(name)
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with others_silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

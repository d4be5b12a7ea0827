"""Commands that talk to one model, and about what was said: load, chat, chats, replay."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    AdapterOption,
    ContextOption,
    DtypeOption,
    EngineOption,
    Model,
    QuantizationOption,
    app,
    show,
)
from workbench.errors import ChildDiedError
from workbench.messages import Piece


@app.command()
def load(
    model: Model,
    engine: EngineOption = "auto",
    quantization: QuantizationOption = "auto",
    dtype: DtypeOption = "auto",
    context: ContextOption = None,
    adapter: AdapterOption = None,
    ask: Annotated[list[str] | None, typer.Option(help="Ask this once loaded; repeatable.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most new tokens per answer.")] = 256,
) -> None:
    """Load a model in a child process, ask it what was given, show times, unload it."""
    import workbench as wb

    with wb.load(
        model,
        engine=engine,
        quantization=quantization,
        dtype=dtype,
        context=context,
        adapter=adapter,
        isolate=True,
    ) as loaded:
        show(loaded)
        for question in ask or []:
            show(loaded.ask(question, max_tokens=max_tokens))


@app.command()
def chat(
    model: Model,
    engine: EngineOption = "auto",
    quantization: QuantizationOption = "auto",
    adapter: AdapterOption = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy, the default.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most new tokens per answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampler.")] = None,
    recommended: Annotated[
        bool, typer.Option(help="Sample as the model's makers recommend, instead of greedily.")
    ] = False,
    keep: Annotated[bool, typer.Option(help="Keep the conversation in outputs/chats.")] = True,
) -> None:
    """Chat in the terminal; Ctrl-C stops an answer, Ctrl-D ends."""
    import workbench as wb
    from workbench.chats import Dialogue, keep_always, kept_file
    from workbench.chats.origin import made_by

    with wb.load(
        model, engine=engine, quantization=quantization, adapter=adapter, isolate=True
    ) as loaded:
        base = loaded.card.recommended_sampling() if recommended else wb.Sampling()
        sampling = wb.Sampling.of(base, temperature=temperature, max_tokens=max_tokens, seed=seed)
        print(f"{loaded.label}. Ctrl-C stops an answer, Ctrl-D ends.")  # noqa: T201
        dialogue = Dialogue(system=system or "", model=loaded.label, made_by=made_by(loaded))
        if keep:
            keep_always(dialogue)
        while (line := _next_line()) is not None:
            _answer(loaded, dialogue, line, sampling)
        if keep and len(dialogue):
            print(f"Kept in {kept_file(dialogue)}")  # noqa: T201


@app.command()
def chats(
    show_one: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Show one: its place or id.")
    ] = None,
) -> None:
    """List the conversations that are kept, the newest first, or show one of them."""
    from workbench.chats import chats as kept

    if show_one is None:
        show(kept())
        return
    from workbench.chats.transcript import transcript_text

    print(transcript_text(kept()[_place(show_one)]))  # noqa: T201


@app.command()
def replay(
    conversation: Annotated[
        str, typer.Argument(help="A .jsonl or .md file, or the id of a kept conversation.")
    ],
    model: Model,
    engine: EngineOption = "auto",
    quantization: QuantizationOption = "auto",
    adapter: AdapterOption = None,
    history: Annotated[
        str, typer.Option(help="What comes before each question: original or own answers.")
    ] = "original",
    max_tokens: Annotated[int | None, typer.Option(help="Most new tokens per answer.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write everything as JSON.")] = None,
) -> None:
    """Ask every turn of a conversation again on another model and show what differs."""
    import workbench as wb
    from workbench.chats import chats as kept
    from workbench.chats import load as load_conversation

    named = not Path(conversation).exists() and not Path(conversation).suffix
    dialogue = kept()[conversation] if named else load_conversation(conversation)
    with wb.load(
        model, engine=engine, quantization=quantization, adapter=adapter, isolate=True
    ) as loaded:
        changes = {} if max_tokens is None else {"max_tokens": max_tokens}
        found = wb.replay(dialogue, loaded, history=history, **changes)  # type: ignore[arg-type]
    show(found)
    if out is not None:
        print(found.save(out))  # noqa: T201
    if found.interrupted:
        raise KeyboardInterrupt


def _place(text: str) -> int | str:
    """Return a place in the table, or the beginning of an id: ids are longer than places."""
    return int(text) if text.isdecimal() and len(text) < 4 else text


def _next_line() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()  # noqa: T201
        return None


def _answer(model: Any, dialogue: Any, question: str, sampling: Any) -> None:
    """Stream one answer to the terminal and into the dialogue; a failed one is told and kept."""
    from workbench.chats.asking import heard
    from workbench.chats.markdown import clean

    def tell(piece: Piece) -> None:  # a model's words must not steer the terminal
        print(clean(piece.text), end="", flush=True)  # noqa: T201

    asked = dialogue.say(question)
    turn = dialogue.answer(asked.id, sampling=sampling)
    came = heard(
        model,
        dialogue.messages(asked.id),
        sampling,
        tell=tell,
        keep=lambda reply: dialogue.so_far(turn, reply),
    )
    print()  # noqa: T201
    dialogue.finish(turn.id, came.reply, error=came.error)
    if isinstance(came.failure, ChildDiedError):
        raise came.failure
    if came.failure is not None:
        print(f"error: {came.error}", file=sys.stderr)  # noqa: T201

"""Commands that talk to one model: load, chat."""

from __future__ import annotations

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
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
) -> None:
    """Chat in the terminal; Ctrl-C stops an answer, Ctrl-D ends."""
    import workbench as wb

    with wb.load(
        model, engine=engine, quantization=quantization, adapter=adapter, isolate=True
    ) as loaded:
        print(f"{loaded.label}. Ctrl-C stops an answer, Ctrl-D ends.")  # noqa: T201
        turns: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        while (line := _next_line()) is not None:
            turns.append({"role": "user", "content": line})
            answer = _stream_answer(loaded, turns, temperature=temperature)
            turns.append({"role": "assistant", "content": answer})


def _next_line() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()  # noqa: T201
        return None


def _stream_answer(model: Any, turns: list[dict[str, str]], *, temperature: float) -> str:
    text: list[str] = []
    stream = model.stream(list(turns), temperature=temperature)
    try:
        for piece in stream:
            text.append(piece.text)
            print(piece.text, end="", flush=True)  # noqa: T201
    except KeyboardInterrupt:
        stream.close()
    print()  # noqa: T201
    return "".join(text)

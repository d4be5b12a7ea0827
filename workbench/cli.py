"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.errors import InputError, WorkbenchError

app = typer.Typer(
    name="workbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Load, measure, compare, fine-tune and export open-weight language models.",
)

Model = Annotated[str, typer.Argument(help="A card id, a folder of safetensors or a .gguf file.")]
EngineOption = Annotated[str, typer.Option(help="transformers, llama.cpp, scripted or auto.")]
QuantizationOption = Annotated[str, typer.Option(help="none, int8, nf4, Q4_K_M, ... or auto.")]
DtypeOption = Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")]
ContextOption = Annotated[int | None, typer.Option(help="Tokens of context to allocate.")]
AdapterOption = Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter.")]
OutOption = Annotated[Path | None, typer.Option(help="Where to write; default below outputs/.")]


def _show(value: Any) -> None:
    """Print what a value says of itself in plain text."""
    bundle = getattr(value, "_repr_mimebundle_", None)
    print(bundle()["text/plain"] if bundle else value)  # noqa: T201


@app.command()
def machine() -> None:
    """Show this computer: processor, memory, devices, versions."""
    import workbench as wb

    _show(wb.machine())


@app.command()
def engines() -> None:
    """Show every engine, and whether its packages are installed."""
    import workbench as wb

    _show(wb.engines())


@app.command()
def models() -> None:
    """List the cards of the catalog."""
    import workbench as wb

    _show(wb.catalog())


@app.command()
def plan(
    model: Model,
    engine: EngineOption = "auto",
    quantization: QuantizationOption = "auto",
    dtype: DtypeOption = "auto",
    context: ContextOption = None,
) -> None:
    """Show how a model would be loaded here, and why."""
    import workbench as wb

    _show(wb.plan(model, engine=engine, quantization=quantization, dtype=dtype, context=context))


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
        _show(loaded)
        for question in ask or []:
            _show(loaded.ask(question, max_tokens=max_tokens))


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


@app.command()
def compare(
    model: Model = "tiny-chat",
    form: Annotated[
        list[str] | None,
        typer.Option("--form", help="engine:form, for example llama.cpp:Q4_K_M; repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most prompts per prompt set.")] = None,
) -> None:
    """Measure one model in several forms, each in its own child process."""
    import workbench as wb

    settings: dict[str, Any] = {"forms": form} if form else {}
    _show(wb.compare(model, limit=limit, **settings))


@app.command()
def finetune(
    dataset: Annotated[
        str | None, typer.Argument(help="JSON lines of chats to learn; default is the recipe's.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Card id or folder to start from; default is the recipe's.")
    ] = None,
    evaluation: Annotated[str | None, typer.Option(help="Held-out JSON lines, or none.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Preset, recipe.yaml, or an adapter's folder.")
    ] = None,
    out: OutOption = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
) -> None:
    """Fine-tune a LoRA on the assistant's turns, with figures before and after."""
    import workbench as wb

    _show(
        wb.finetune(
            model, dataset=dataset, evaluation=evaluation, recipe=recipe, out=out, resume=resume
        )
    )


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter.")],
    out: OutOption = None,
) -> None:
    """Merge an adapter into its base model."""
    import workbench as wb

    print(wb.merge(adapter, out))  # noqa: T201


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model, or the folder of an adapter.")],
    quantization: Annotated[
        list[str] | None, typer.Option("--quantization", help="F16, Q8_0, Q4_K_M; repeatable.")
    ] = None,
    out: OutOption = None,
) -> None:
    """Export to GGUF, each hop checked for parity."""
    import workbench as wb

    forms = tuple(quantization) if quantization else ("F16", "Q8_0", "Q4_K_M")
    _show(wb.export_gguf(model, out, quantizations=forms))


@app.command()
def parity(
    model: Annotated[str | None, typer.Argument(help="The safetensors model, or the base.")] = None,
    adapter: AdapterOption = None,
    merged: Annotated[Path | None, typer.Option(help="Folder of the merged model.")] = None,
    gguf: Annotated[
        list[str] | None, typer.Option("--gguf", help="FORM=FILE, for example F16=a.gguf.")
    ] = None,
) -> None:
    """Hold the forms of one model against each other; exit code 1 when a hop is broken."""
    import workbench as wb

    ggufs: dict[str, str] = {}
    for text in gguf or []:
        form, sign, file = text.partition("=")
        if not sign:
            raise InputError(f"--gguf {text} names no file.", hint="Write --gguf FORM=FILE.")
        ggufs[form] = file
    found = wb.parity(model, adapter=adapter, merged=merged, ggufs=ggufs)
    _show(found)
    found.require()


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="A shipped name, a path, or a run file.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="NAME VALUE (or NAME=VALUE); repeatable."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="YAML file of parameters.")
    ] = None,
) -> None:
    """Execute a notebook with parameters, or a run file of several, into run folders."""
    from workbench.runs import run_command

    given: dict[str, str] = {}
    for text in parameter or []:
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"-p {text} has no value.", hint="Write -p NAME VALUE.")
        given[name] = value
    _show(run_command(notebook, given, file=file))


@app.command()
def runs() -> None:
    """List the runs, newest first."""
    import workbench as wb

    _show(wb.runs())


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Render a run's report.html again."""
    from workbench.runs import report as render

    print(render(folder))  # noqa: T201


def _joined_parameters(arguments: Sequence[str]) -> list[str]:
    """Turn ``-p NAME VALUE`` into ``-p NAME=VALUE``."""
    joined: list[str] = []
    rest = iter(arguments)
    for word in rest:
        joined.append(word)
        if word in ("-p", "--parameter"):
            name = next(rest, "")
            joined.append(name if "=" in name else f"{name}={next(rest, '')}")
    return joined


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["run"]:
        words = _joined_parameters(words)
    try:
        app(args=words)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()

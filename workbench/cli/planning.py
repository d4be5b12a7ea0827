"""Commands about plans: plan, estimate, ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import (
    AdapterOption,
    DtypeOption,
    EngineOption,
    Model,
    QuantizationOption,
    app,
    show,
)

MachineOption = Annotated[
    str | None,
    typer.Option(help="Another one: 24GB-cuda, 2x80GB-cuda, 16GB-mac, cpu-32GB, or a file."),
]
ContextOption = Annotated[int | None, typer.Option(help="Tokens of context, or of a row.")]
BatchOption = Annotated[int, typer.Option(help="Sequences at a time.")]
CacheOption = Annotated[str, typer.Option(help="KV cache: f16, q8_0, q4_0 or auto.")]
LayersOption = Annotated[int | None, typer.Option(help="llama.cpp layers on the GPU, -1 all.")]
ExpertsOption = Annotated[
    int | None, typer.Option(help="First layers whose experts stay in RAM (llama.cpp).")
]


@app.command()
def plan(
    model: Model,
    machine: MachineOption = None,
    context: ContextOption = None,
    batch: BatchOption = 1,
    task: Annotated[str, typer.Option(help="chat or finetune.")] = "chat",
    policy: Annotated[str, typer.Option(help="fit (best that fits) or by-size.")] = "fit",
    engine: EngineOption = "auto",
    quantization: QuantizationOption = "auto",
    dtype: DtypeOption = "auto",
    device: Annotated[str, typer.Option(help="cuda, mps, cpu or auto.")] = "auto",
    gpu_layers: LayersOption = None,
    experts_on_cpu: ExpertsOption = None,
    cache_type: CacheOption = "auto",
    tensor_parallel: Annotated[int | None, typer.Option(help="GPUs that share the model.")] = None,
    adapter: AdapterOption = None,
    margin: Annotated[
        float | None, typer.Option(help="Share of each memory that stays free, 0 to 1.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the plan as JSON.")] = None,
) -> None:
    """Show how a model would be loaded or fine-tuned, here or on another machine, and why."""
    import workbench as wb

    found = wb.plan(
        model,
        machine=machine,
        context=context,
        batch=batch,
        task=task,
        policy=policy,
        engine=engine,
        quantization=quantization,
        dtype=dtype,
        device=device,
        gpu_layers=gpu_layers,
        experts_on_cpu=experts_on_cpu,
        cache_type=cache_type,
        tensor_parallel=tensor_parallel,
        adapter=adapter,
        margin=margin,
    )
    show(found)
    if out is not None:
        print(found.save(out))  # noqa: T201


@app.command()
def estimate(
    model: Model,
    machine: MachineOption = None,
    context: ContextOption = None,
    batch: BatchOption = 1,
    engine: EngineOption = "auto",
    quantization: QuantizationOption = "auto",
    dtype: DtypeOption = "auto",
    gpu_layers: LayersOption = None,
    experts_on_cpu: ExpertsOption = None,
    cache_type: CacheOption = "auto",
) -> None:
    """Show the memory of a model in parts, each with the rule that gives it."""
    import workbench as wb

    given: dict[str, Any] = {"gpu_layers": gpu_layers, "experts_on_cpu": experts_on_cpu}
    show(
        wb.estimate(
            model,
            machine=machine,
            context=context,
            batch=batch,
            engine=engine,
            quantization=quantization,
            dtype=dtype,
            cache_type=cache_type,
            **given,
        )
    )


@app.command()
def ledger(
    each: Annotated[bool, typer.Option("--each", help="Every measurement as a row.")] = False,
) -> None:
    """Show the estimator's error: estimates beside what loads and fine-tunings measured here."""
    import workbench as wb

    found = wb.ledger()
    show(found.rows() if each else found)

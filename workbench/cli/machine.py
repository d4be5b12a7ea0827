"""Commands about this computer: machine, engines, plan."""

from __future__ import annotations


from workbench.cli.options import ContextOption, DtypeOption, EngineOption, Model, QuantizationOption, app, show


@app.command()
def machine() -> None:
    """Show this computer: processor, memory, devices, versions."""
    import workbench as wb

    show(wb.machine())


@app.command()
def engines() -> None:
    """Show every engine, and whether its packages are installed."""
    import workbench as wb

    show(wb.engines())


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

    show(wb.plan(model, engine=engine, quantization=quantization, dtype=dtype, context=context))

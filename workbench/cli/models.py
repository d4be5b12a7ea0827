"""Commands about the catalog: models."""

from __future__ import annotations


from workbench.cli.options import app, show


@app.command()
def models() -> None:
    """List the cards of the catalog."""
    import workbench as wb

    show(wb.catalog())

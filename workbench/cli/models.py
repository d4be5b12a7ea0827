"""Commands about the catalog: models, and beneath it search, show and what others add."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workbench.cli.options import app, show


class _SearchFirst(TyperGroup):
    """A group whose words are a search, unless the first one names a command of the group."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``search`` in front where no command is named."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["search", *args]
        return super().parse_args(ctx, args)


group = typer.Typer(
    cls=_SearchFirst,
    help="Search the cards: workbench models WORDS (short for: workbench models search WORDS).",
)
app.add_typer(group, name="models")


@group.command()
def search(
    words: Annotated[
        list[str] | None, typer.Argument(help="All must be in the card; none lists every card.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="chat, code, reasoning, vision, embedding, rerank; repeatable."),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Code or name, ja or Japanese; repeatable.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="7B, '<8B', '>=30B', 3B-14B, 500M.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="A licence or its beginning, or open.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="An engine that can load it.")] = None,
    verified: Annotated[
        list[str] | None, typer.Option(help="here, elsewhere, failed, pending; repeatable.")
    ] = None,
    gated: Annotated[
        bool | None, typer.Option(help="Whether the hub asks for an accepted licence.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="A family or its beginning.")] = None,
    fits: Annotated[bool | None, typer.Option(help="Whether it fits on this machine.")] = None,
    sort: Annotated[str, typer.Option(help="id, size or context.")] = "id",
) -> None:
    """List the cards of the catalog that match."""
    import shutil

    if fits is None:
        from workbench.catalog import catalog
    else:  # only planning can judge that, and it takes longer to import
        from workbench.planning import catalog

    found = catalog().search(
        words or "",
        task=task,
        language=language,
        size=size,
        licence=licence,
        engine=engine,
        verified=verified or None,
        gated=gated,
        family=family,
        fits=fits,
        sort=sort,
    )
    print(found.text(shutil.get_terminal_size((100, 24)).columns))  # noqa: T201


@group.command("show")
def show_card(card_id: Annotated[str, typer.Argument(help="A card id, or a path.")]) -> None:
    """Show everything a card says."""
    from workbench.catalog import resolve

    show(resolve(card_id))


@group.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder, a .gguf file, a card (.yaml, .json) or org/name on the hub."
        ),
    ],
    card_id: Annotated[str | None, typer.Option("--id", help="The card's id.")] = None,
    display_name: Annotated[str | None, typer.Option(help="The name shown in tables.")] = None,
    replace: Annotated[bool, typer.Option(help="Overwrite a card that has this id.")] = False,
) -> None:
    """Write a card for a model into your own catalog, from its headers alone."""
    from workbench.catalog import catalog
    from workbench.catalog.card_text import card_text

    shelf = catalog()
    card = shelf.add(source, card_id=card_id, display_name=display_name, replace=replace)
    print(f"{shelf.file(card.id)}\n\n{card_text(card)}", end="")  # noqa: T201


@group.command("downloaded")
def list_downloaded() -> None:
    """List the models on this disk, with their store and size."""
    from workbench.catalog import catalog
    from workbench.catalog.disk import downloaded

    show(downloaded(catalog()))


@group.command("prune")
def prune_models(
    model: Annotated[str | None, typer.Argument(help="A card id or a repository.")] = None,
    partial: Annotated[bool, typer.Option(help="Downloads that did not end.")] = False,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="What was not used for so many days.")
    ] = None,
    converted: Annotated[bool, typer.Option(help="Files that the workbench converted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show what would be removed and how much that frees, ask, and remove it."""
    from workbench.catalog import catalog
    from workbench.catalog.prune import prune

    found = prune(
        catalog(), model=model, partial=partial, older_than=older_than, converted=converted
    )
    show(found)
    if not found.items and not found.parts:
        return
    if yes or typer.confirm("Remove them?"):
        print(f"{found.execute() / 1e9:.3f} GB freed")  # noqa: T201

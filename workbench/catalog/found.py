"""Cards that were found, as a sequence that shows itself as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from workbench.catalog.card import Card
from workbench.errors import InputError, did_you_mean
from workbench.figures import Table
from workbench.figures.table import NOTHING, width
from workbench.paths import shipped
from workbench.receipts import Evidence

COLUMNS = 100
_HEADINGS = {
    **{name: name for name in ("id", "size", "context", "tasks", "languages", "licence")},
    **{name: name for name in ("forms", "verified", "disk")},
}
_LEAST = {"id": 24, "tasks": 9, "languages": 9, "licence": 8, "forms": 9}
"""Terminal columns that a shortened cell keeps; together with the others they fit 100."""
_LISTS = ("tasks", "languages", "forms")
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def _size_key(card: Card) -> tuple[bool, int, str]:
    count = card.architecture.parameters
    return count is None, count or 0, card.id


def _context_key(card: Card) -> tuple[bool, int, str]:
    return card.context_length is None, card.context_length or 0, card.id


SORTS: dict[str, Callable[[Card], Any]] = {
    "id": lambda card: card.id,
    "size": _size_key,
    "context": _context_key,
}
"""Orders by name; what is unknown comes last."""


class Found(Sequence[Card]):
    """Cards that were found; displays itself in a terminal, a notebook and on a static page.

    Args:
        cards: The cards.
        evidence: Receipts that say what is verified; default is all there are.
        hint: What to say when there are none.
        of: How many cards were searched.
    """

    def __init__(
        self,
        cards: Sequence[Card],
        *,
        evidence: Evidence | None = None,
        hint: str = "",
        of: int | None = None,
    ) -> None:
        self._cards = tuple(cards)
        self._evidence = evidence
        self.hint = hint
        self._of = len(self._cards) if of is None else of

    def __len__(self) -> int:
        return len(self._cards)

    @overload
    def __getitem__(self, index: int) -> Card: ...

    @overload
    def __getitem__(self, index: slice) -> Found: ...

    def __getitem__(self, index: int | slice) -> Card | Found:
        return self._with(self._cards[index]) if isinstance(index, slice) else self._cards[index]

    def __iter__(self) -> Iterator[Card]:
        return iter(self._cards)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, in order."""
        return tuple(card.id for card in self._cards)

    def sorted(self, by: str = "id") -> Found:
        """Return the cards by ``id``, ``size`` or ``context``, what is unknown last.

        Raises:
            InputError: An unknown order.
        """
        if by not in SORTS:
            raise InputError(f"Cards cannot be sorted by {by!r}.", hint=did_you_mean(by, SORTS))
        return self._with(sorted(self._cards, key=SORTS[by]))

    def _with(self, cards: Sequence[Card]) -> Found:
        return Found(cards, evidence=self._evidence, hint=self.hint, of=self._of)

    def table(self) -> Table:
        """Return all that the cards say in these columns, nothing shortened."""
        rows = self._rows()
        for row in rows:
            row.update({name: ", ".join(row[name]) for name in _LISTS})
        return Table(
            [{name: cell or None for name, cell in row.items()} for row in rows],
            columns=_HEADINGS,
            caption=self._caption(),
        )

    def _rows(self) -> list[dict[str, Any]]:
        if self._evidence is None:
            self._evidence = Evidence.gather()
        stores = _stores()
        return [_row(card, self._evidence, stores) for card in self._cards]

    def text(self, columns: int = COLUMNS) -> str:
        """Return the table as text that fits into ``columns`` of a terminal, 100 at least.

        Lists are cut to what fits, with a count of the rest; an id is never cut: one that is too
        long stands on a line of its own.
        """
        if not self._cards:
            return self._caption() + (f" {self.hint}" if self.hint else "")
        rows = self._rows()
        for row in rows:  # what not every model has comes first
            row["tasks"] = sorted(row["tasks"], key=lambda task: task == "chat")
            row["forms"] = sorted(row["forms"], key=lambda form: form == "safetensors")
        sizes = _sizes(rows, columns)
        cut = [{name: _cell(row[name], sizes[name]) for name in _HEADINGS} for row in rows]
        table = Table(cut, columns=_HEADINGS, caption=self._caption())
        return _with_whole_ids(str(table), self.ids, sizes["id"])

    def _caption(self) -> str:
        count = len(self._cards)
        noun = "card" if count == 1 else "cards"
        if not count:
            return "No cards." if not self._of else f"None of {self._of} cards matches."
        return f"{count} {noun}" if count == self._of else f"{count} of {self._of} cards"

    def __repr__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        if not self._cards:
            import html

            return {
                "text/plain": self.text(),
                "text/html": f"<div>{html.escape(self.text())}</div>",
            }
        return {"text/plain": self.text(), "text/html": self.table().html()}


def card_forms(card: Card) -> tuple[str, ...]:
    """Return the forms that there are of a model: safetensors, GGUF, AWQ, MLX, ..., remote."""
    found = []
    if card.remote is not None:
        found.append("remote")
    if card.path is not None:
        found.append("GGUF" if card.path.endswith(".gguf") else "safetensors")
    if card.repository is not None:
        found.append("safetensors" if card.stored is None else card.stored.method.upper())
    if card.gguf is not None:
        found.append("GGUF")
    found += [form.kind.upper() for form in card.forms]
    return tuple(dict.fromkeys(found))


def on_disk(card: Card, stores: Sequence[Path] | None = None) -> bool:
    """Return whether weights of the model lie on this machine; they are not checked.

    Looked at are the card's path, the Hugging Face cache and LM Studio's folders.

    Args:
        card: The card.
        stores: The folders, where they are known already.
    """
    path = card.expanded_path()
    if path is not None:
        return (path if path.is_absolute() else shipped() / path).exists()
    repositories = [card.repository, card.gguf.repository if card.gguf else None]
    repositories += [form.repository for form in card.forms]
    folders = _stores() if stores is None else stores
    return any(_has_weights(name, folders) for name in dict.fromkeys(repositories) if name)


def _stores() -> list[Path]:
    """Return the folders of the Hugging Face cache and of LM Studio that there are."""
    from workbench.catalog.stores import hub_cache, lm_studio_folders

    return [path for path in (hub_cache(), *lm_studio_folders()) if path.is_dir()]


def _has_weights(repository: str, stores: Sequence[Path]) -> bool:
    cached = "--".join(("models", *repository.split("/")))
    folders = [place for store in stores for place in (store / cached, store / repository)]
    return any(_is_weights(file) for folder in folders for file in folder.glob("**/*"))


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".gguf", ".onnx") and file.is_file()  # no dead link


def _short_count(count: int | None) -> str:
    """Return 7.6B for 7615616512."""
    for factor, unit in _UNITS:
        if count is not None and count >= factor * 0.9995:
            return (
                f"{count / factor:.3g}{unit}"
                if count >= 99.95 * factor
                else f"{count / factor:.1f}{unit}"
            )
    return "–" if count is None else str(count)


def _short_context(tokens: int | None) -> str:
    """Return 32k for 32768, 1M for 1048576."""
    if tokens is None:
        return "–"
    if tokens < 1000:
        return str(tokens)
    base = 1024 if tokens % 1024 == 0 else 1000
    if tokens >= base * base:
        return f"{tokens / base / base:.3g}M"
    return f"{tokens / base:.3g}k"


def _row(card: Card, evidence: Evidence, stores: Sequence[Path]) -> dict[str, Any]:
    return {
        "id": card.id,
        "size": _short_count(card.architecture.parameters),
        "context": _short_context(card.context_length),
        "tasks": list(card.tasks),
        "languages": list(card.languages),
        "licence": card.licence,
        "forms": list(card_forms(card)),
        "verified": evidence.verified(card),
        "disk": "yes" if on_disk(card, stores) else None,
    }


def _sizes(rows: Sequence[dict[str, Any]], columns: int) -> dict[str, int]:
    """Return how wide each column is, the roomiest shortened first until a line fits."""
    sizes = {
        name: max(width(name), *(width(_cell(row[name], None)) for row in rows))
        for name in _HEADINGS
    }
    gaps = 2 * (len(sizes) - 1)
    while sum(sizes.values()) + gaps > columns:
        widest = max(_LEAST, key=lambda name: sizes[name] - _LEAST[name])
        if sizes[widest] <= _LEAST[widest]:
            break
        sizes[widest] -= 1
    return sizes


def _cell(value: str | Sequence[str] | None, size: int | None) -> str:
    """Return a cell, of a list as many as fit with a count of the rest."""
    if not value:
        return NOTHING
    if isinstance(value, str):
        return _cut(value, size)
    for count in range(len(value), 0, -1):
        rest = f" +{len(value) - count}" if count < len(value) else ""
        text = ", ".join(value[:count]) + rest
        if size is None or width(text) <= size:
            return text
    return _cut(value[0], size)


def _cut(text: str, size: int | None) -> str:
    if size is None or width(text) <= size:
        return text
    kept = text
    while width(kept) > size - 1:
        kept = kept[:-1]
    return kept + "…"


def _with_whole_ids(text: str, ids: Sequence[str], size: int) -> str:
    """Put each id that was cut on a line of its own, above the rest of its row."""
    lines = text.split("\n")
    head, rows = lines[: -len(ids)], lines[-len(ids) :]
    whole = [
        row if width(card_id) <= size else f"{card_id}\n{' ' * size}{row[size:]}"
        for card_id, row in zip(ids, rows, strict=True)
    ]
    return "\n".join([*head, *whole])

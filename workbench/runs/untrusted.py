"""Turn untrusted Markdown, HTML and TeX into HTML that is safe to show, with math as MathML."""

from __future__ import annotations

import functools
import html
import re
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workbench.chats.formulas import formula

_MATHML = "http://www.w3.org/1998/Math/MathML"
_TAGS = frozenset(
    re.findall(
        r"\w+",
        "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption "
        "figure h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp small span strong sub "
        "summary sup table tbody td tfoot th thead tr u ul var",
    )
)
_SCHEMES = ("", "http", "https", "mailto")
_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
_SILENT = re.compile(r"<(script|style|iframe|object|template)\b.*?(</\1\s*>|$)", re.I | re.S)
_SECTION = re.compile(r"s-[\w-]+")


def clean_html(source: str) -> str:
    """Return HTML reduced to harmless tags and attributes: no script, no style, no outside source.

    Scripts and styles vanish with what they hold; other unknown tags become visible text's marks.
    """
    return str(_cleaner().clean(_SILENT.sub("", source)))


@functools.cache
def _cleaner() -> Any:
    import bleach.sanitizer

    return bleach.sanitizer.Cleaner(
        tags=_TAGS, attributes=_attribute, protocols={"http", "https", "mailto", "data"}, strip=True
    )


def _attribute(tag: str, name: str, value: str) -> bool:
    if name in ("class", "title", "lang", "dir"):
        return True
    if name == "id":
        return tag[0] == "h" and _SECTION.fullmatch(value) is not None
    if tag == "a" and name == "href":
        return urlsplit(value.strip()).scheme.lower() in _SCHEMES
    if tag == "img":
        return name == "alt" or (name == "src" and _IMAGE.fullmatch(value) is not None)
    if tag == "details":
        return name == "open"
    return tag in ("td", "th", "col") and name in ("colspan", "rowspan", "scope", "span")


class Headings:
    """Gives each heading of a page an address, and keeps them for the contents."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str, str]] = []
        self._taken: set[str] = set()

    def add(self, level: int, inner: str) -> str:
        """Return the address of a heading whose inner HTML is given."""
        text = html.unescape(re.sub(r"<[^>]+>", "", inner)).strip()
        slug = re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"
        address, count = f"s-{slug}", 2
        while address in self._taken:
            address, count = f"s-{slug}-{count}", count + 1
        self._taken.add(address)
        self.found.append((level, text, address))
        return address


def markdown(
    source: str,
    *,
    headings: Headings | None = None,
    folder: Path | None = None,
    attachments: dict[str, dict[str, str]] | None = None,
) -> str:
    """Return safe HTML of a Markdown text.

    Args:
        source: The text; HTML in it is cleaned, TeX in it becomes MathML.
        headings: Where its headings are kept; without, they get no address.
        folder: Where its relative images lie; they are put into the page.
        attachments: Images that the cell carries.
    """
    from nbconvert.filters.markdown_mistune import MarkdownWithMath

    renderer = _renderer()(headings, folder, attachments or {})
    cleaned = clean_html(MarkdownWithMath(renderer=renderer).render(source))
    for mark, math in renderer.math.items():
        cleaned = cleaned.replace(mark, math)
    return cleaned


def tex(source: str, *, block: bool = False) -> str:
    r"""Return MathML of a TeX formula, or the formula as code when it cannot be read.

    The formula is built anew of known elements and attributes, since TeX can carry addresses and
    styles (``\href``, ``\style``) that would reach the page.
    """
    node = formula(source, source.strip(), block)
    if node is None:
        tag = "pre" if block else "code"
        return f"<{tag}>{html.escape(source)}</{tag}>"
    display = "block" if block else "inline"
    inner = "".join(_mathml(child) for child in node[2:])
    return f'<math xmlns="{_MATHML}" class="wb-formula" display="{display}">{inner}</math>'


def _mathml(node: Any) -> str:
    if isinstance(node, str):
        return html.escape(node, quote=False)
    name, attributes, *children = node
    said = "".join(f' {key}="{html.escape(str(v))}"' for key, v in (attributes or {}).items())
    return f"<{name}{said}>{''.join(_mathml(child) for child in children)}</{name}>"


@functools.cache
def _renderer() -> Any:
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    class Renderer(IPythonRenderer):  # type: ignore[misc]
        """Puts a mark for each formula, which passes the cleaning, and addresses headings."""

        def __init__(
            self,
            headings: Headings | None,
            folder: Path | None,
            attachments: dict[str, dict[str, str]],
        ) -> None:
            super().__init__(
                escape=False,
                embed_images=folder is not None,
                path=str(folder or ""),
                attachments=attachments,
                exclude_anchor_links=True,
            )
            self.headings = headings
            self.math: dict[str, str] = {}

        def heading(self, text: str, level: int, **_: Any) -> str:
            if self.headings is None:
                return f"<h{level}>{text}</h{level}>\n"
            return f'<h{level} id="{self.headings.add(level, text)}">{text}</h{level}>\n'

        def block_math(self, body: str) -> str:
            return self._mark(tex(body, block=True))

        def inline_math(self, body: str) -> str:
            if body != body.strip():  # "$5 and $6" is money
                return f"${html.escape(body, quote=False)}$"
            return self._mark(tex(body))

        def latex_environment(self, name: str, body: str) -> str:
            return self._mark(tex(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True))

        def _mark(self, math: str) -> str:
            mark = f"formula-{secrets.token_hex(12)}"
            self.math[mark] = math
            return mark

    return Renderer

"""A page that is refused all other machines, and keeps what it asked of them and its errors."""

from __future__ import annotations

from typing import Any

LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:", "about:")


def watched(context: Any) -> Any:
    """Return a new page that is refused all other machines."""
    page = context.new_page()
    page.asked, page.said = [], []
    page.set_default_timeout(15_000)

    def route(route: Any) -> None:
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            page.asked.append(route.request.url)
            route.abort()

    page.route("**/*", route)
    page.on("pageerror", lambda error: page.said.append(str(error)))
    return page

"""A page for the tests of widgets: no request leaves this machine, errors are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from watched_page import watched


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page; ``asked`` holds its requests to other machines (refused), ``said`` its errors."""
    context = chromium.new_context(viewport={"width": 1000, "height": 900})
    yield watched(context)
    context.close()

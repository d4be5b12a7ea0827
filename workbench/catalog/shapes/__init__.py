"""The tensors of a model, by its facts or by its files' headers."""

from workbench.catalog.shapes.families import (
    FAMILIES,
    known_or_guessed,
    shapes,
    shapes_by_facts,
    vocabulary,
)
from workbench.catalog.shapes.from_header import shapes_of_header
from workbench.catalog.shapes.shape import Shape, ShapeList

__all__ = [
    "FAMILIES",
    "Shape",
    "ShapeList",
    "known_or_guessed",
    "shapes",
    "shapes_by_facts",
    "shapes_of_header",
    "vocabulary",
]

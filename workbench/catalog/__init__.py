"""Cards and the shelf they stand on: what a model is and where its files lie."""

from workbench.catalog.architecture import Architecture
from workbench.catalog.card import Card
from workbench.catalog.shelf import Shelf, catalog, resolve
from workbench.catalog.source import ModelFiles, fetch, find_local, locate

__all__ = [
    "Architecture",
    "Card",
    "ModelFiles",
    "Shelf",
    "catalog",
    "fetch",
    "find_local",
    "locate",
    "resolve",
]

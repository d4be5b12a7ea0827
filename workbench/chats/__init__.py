"""Conversations as data: dialogues with branches, kept, replayed, compared and voted on."""

from __future__ import annotations

from workbench.chats.dialogue import Dialogue
from workbench.chats.keeping import chats_folder, keep, keep_always, kept_file, load, save
from workbench.chats.shelf import Chats, chats
from workbench.chats.turn import Turn

__all__ = [
    "Chats",
    "Dialogue",
    "Turn",
    "chats",
    "chats_folder",
    "keep",
    "keep_always",
    "kept_file",
    "load",
    "save",
]

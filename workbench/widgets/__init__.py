"""Widgets: the chat, the arena and live curves; state in Python, drawing in JavaScript."""

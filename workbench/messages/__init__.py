"""The values that travel between rooms: Message, Image, ToolCall, Sampling, Piece, Reply."""

from workbench.messages.message import (
    ROLES,
    Conversation,
    Image,
    Message,
    MessageLike,
    Role,
    ToolCall,
    as_messages,
)
from workbench.messages.reply import FinishReason, Likelihood, Piece, Reply, Timings, Usage
from workbench.messages.sampling import Sampling

__all__ = [
    "ROLES",
    "Conversation",
    "FinishReason",
    "Image",
    "Likelihood",
    "Message",
    "MessageLike",
    "Piece",
    "Reply",
    "Role",
    "Sampling",
    "Timings",
    "ToolCall",
    "Usage",
    "as_messages",
]

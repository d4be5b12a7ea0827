"""ggml's graph allocator without the graph's data: how large a compute buffer becomes.

It follows ggml-alloc.c of llama.cpp: nodes in the order of a depth-first visit, the best fitting
free block, buffers reused in place and freed with their last child. Sizes are in bytes.
"""

from __future__ import annotations

import dataclasses

ALIGNMENT = {"cpu": 32, "cuda": 128, "mps": 32}
_ENDLESS = 1 << 62
_IN_PLACE = frozenset({"add", "mul", "scale", "rope", "rms_norm", "soft_max", "unary", "clamp"})


@dataclasses.dataclass(slots=True, eq=False)
class Node:
    """A tensor of the graph.

    Attributes:
        op: Its operation; ``input`` for a leaf of the graph.
        size: Bytes; 0 for what lies elsewhere (weights, cache).
        sources: The tensors it is made of, in ggml's order.
        view_of: The tensor whose memory it shows, or None.
        layout: Type and shape, which must be equal for reuse in place.
        kept: An output, never freed nor overwritten.
    """

    op: str
    size: int
    sources: tuple[Node, ...] = ()
    view_of: Node | None = None
    layout: tuple[object, ...] = ()
    kept: bool = False
    offset: int = -1
    children: int = 0
    views: int = 0


class Graph:
    """Collects nodes as ``ggml_build_forward_expand`` does."""

    def __init__(self) -> None:
        self.inputs: list[Node] = []
        self.nodes: list[Node] = []
        self._seen: set[int] = set()

    def input(self, size: int) -> Node:
        """Return a leaf that the graph holds from its first use."""
        return Node("input", size, layout=("input", size))

    def make(self, op: str, size: int, *sources: Node, kind: str = "f32") -> Node:
        """Return a tensor made of others."""
        return Node(op, size, sources, layout=(kind, size))

    def view(self, source: Node, *, size: int | None = None) -> Node:
        """Return a view: reshape, permutation or part."""
        whole = source.view_of or source
        shown = source.size if size is None else size
        return Node("view", shown, (source,), view_of=whole, layout=("view", shown))

    def expand(self, node: Node) -> None:
        """Add a node and all it is made of, once."""
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        for source in node.sources:
            self.expand(source)
        (self.inputs if node.op == "input" else self.nodes).append(node)

    def buffer_bytes(self, alignment: int) -> int:
        """Return the size of the buffer that holds the graph's tensors."""
        memory = _Memory(alignment)
        for leaf in self.inputs:
            if leaf.size:
                leaf.offset = memory.take(leaf.size)
        for node in self.nodes:
            if node.view_of is not None:
                node.view_of.views += 1
            for source in node.sources:
                source.children += 1
        for node in self.nodes:
            _place(node, memory)
            for source in node.sources:
                _release(source, memory)
        return memory.most


class _Memory:
    """Free blocks of one buffer, by offset."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.free = [[0, _ENDLESS]]
        self.most = 0

    def take(self, size: int) -> int:
        size = self._aligned(size)
        best, best_size = len(self.free) - 1, _ENDLESS
        for index in range(len(self.free) - 1):
            room = self.free[index][1]
            if size <= room <= best_size:
                best, best_size = index, room
        block = self.free[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self.free[best]
        self.most = max(self.most, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        size = self._aligned(size)
        index = 0
        while index < len(self.free) and self.free[index][0] < offset:
            index += 1
        self.free.insert(index, [offset, size])
        for left in (index, index - 1):  # join with the next one, then with the one before
            if 0 <= left < len(self.free) - 1:
                first, second = self.free[left], self.free[left + 1]
                if first[0] + first[1] == second[0]:
                    first[1] += second[1]
                    del self.free[left + 1]

    def shrink(self, offset: int, was: int, now: int) -> None:
        was, now = self._aligned(was), self._aligned(now)
        if was > now:
            self.give(offset + now, was - now)

    def _aligned(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment


def _place(node: Node, memory: _Memory) -> None:
    if node.view_of is not None or node.size == 0:
        return
    if node.op in _IN_PLACE:
        for parent in node.sources:
            if _reused(node, parent, memory):
                return
    node.offset = memory.take(node.size)


def _reused(node: Node, parent: Node, memory: _Memory) -> bool:
    """Take over a parent's memory where nobody else needs it."""
    owner = parent.view_of or parent
    if owner.offset < 0 or owner.kept or parent.kept or parent.size != node.size:
        return False
    if parent.children != 1 or parent.views != 0:
        return False
    if parent.view_of is not None:
        if owner.views != 1 or owner.children != 0 or owner.size != parent.size:
            return False
    elif parent.layout[0] != node.layout[0] and parent.op != "input":
        return False
    node.offset, owner.offset = owner.offset, -1
    memory.shrink(node.offset, owner.size, node.size)
    return True


def _release(source: Node, memory: _Memory) -> None:
    source.children -= 1
    if source.children or source.views:
        return
    owner = source
    if source.view_of is not None:
        owner = source.view_of
        owner.views -= 1
        if owner.views or owner.children:
            return
    if owner.offset >= 0 and not owner.kept:
        memory.give(owner.offset, owner.size)
        owner.offset = -1

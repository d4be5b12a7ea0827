"""llama.cpp's compute graph of a batch, as far as its buffers go: one builder for all families.

The order of operations is that of ``src/models/*.cpp`` and ``src/llama-graph.cpp``; it decides
which buffers live at the same time. Weights and cache lie elsewhere and have no size here.
"""

from __future__ import annotations

import dataclasses
import functools

from workbench.catalog.architecture import Architecture
from workbench.memory.ggml_graph import ALIGNMENT, Graph, Node
from workbench.memory.layers import heads, layers

_MOST_LAYERS = 16
_F32 = 4
_QK_NORM = (
    "qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_moe", "gemma3", "gemma3_text", "gemma3n",
)  # fmt: skip
_SCALED_QUERY = ("gemma2", "gemma3", "gemma3_text", "phi3", "phimoe")
_SOFT_CAPPED = ("gemma2", "gemma3n")
_SCALED_RESIDUAL = ("granite", "granitemoe", "granitemoehybrid")
_LAYER_NORM = ("gpt2", "stablelm", "stablelm_epoch", "phi", "phimoe", "moondream1")
_BIASED_QKV = ("qwen2", "seed_oss", "phimoe", "gpt_oss", "gpt2")


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """What the graph is reserved for.

    Attributes:
        tokens: Tokens of a physical batch.
        cells: Cells of a full layer, over all sequences.
        window_cells: Cells of a sliding layer; 0 where none slides.
        flash: Whether flash attention is on.
        rotated: Whether the cache is quantized, and keys and values are rotated for it.
        device: Where the graph runs: the CPU also holds what other devices get from it.
    """

    tokens: int
    cells: int
    window_cells: int = 0
    flash: bool = True
    rotated: bool = False
    device: str = "cpu"


@functools.lru_cache(maxsize=256)
def compute_bytes(facts: Architecture, batch: Batch) -> int:
    """Return the bytes of the compute buffer of one device."""
    return _Builder(facts, batch).built().buffer_bytes(ALIGNMENT[batch.device])


class _Builder:
    def __init__(self, facts: Architecture, batch: Batch) -> None:
        self.facts, self.batch, self.graph = facts, batch, Graph()
        self.weight = Node("weight", 0)
        self.kind = facts.model_type or ""
        self.hidden = facts.hidden_size or 0

    # sizes: a row is one token's values
    def rows(self, width: float) -> int:
        return int(width * self.batch.tokens * _F32)

    def matmul(self, width: float, value: Node) -> Node:
        return self.graph.make("mul_mat", self.rows(width), self.weight, value)

    def op(self, name: str, *sources: Node) -> Node:
        return self.graph.make(name, sources[0].size, *sources)

    def norm(self, value: Node) -> Node:
        normed = self.op("mul", self.op(self._norm_op(), value), self.weight)
        return self.op("add", normed, self.weight) if self.kind in _LAYER_NORM else normed

    def _norm_op(self) -> str:
        return "norm" if self.kind in _LAYER_NORM else "rms_norm"

    def built(self) -> Graph:
        current = self._embedding()
        # multimodal RoPE has four positions for a token
        places = 16 if self.kind.startswith("qwen3_vl") else 4
        self.positions = self.graph.input(places * self.batch.tokens)
        self._inputs_of_attention()
        self.out_ids = self.graph.input(4 * self.batch.tokens)
        if self.kind == "gpt2":
            rows = self.graph.make("get_rows", self.rows(self.hidden), self.weight, self.positions)
            current = self.op("add", current, rows)
        kinds = layers(self.facts)
        shown = _shown(len(kinds))
        for index in shown:
            current = self._layer(current, index, last=index == shown[-1])
        return self._output(current)

    def _embedding(self) -> Node:
        graph = self.graph
        wide = self.hidden * (1 + self._deepstack())
        tokens = graph.input(4 * self.batch.tokens)
        found = graph.make("get_rows", self.rows(self.hidden), self.weight, tokens)
        if self._deepstack():
            found = graph.make("pad", self.rows(wide), found)
        given = graph.input(self.rows(wide))
        if self.batch.device == "cpu":
            graph.expand(found)
            graph.expand(given)
        else:  # made on the CPU and copied over
            found = graph.input(self.rows(wide))
        self.embedded = found
        current = found
        graph.expand(found)
        if self._deepstack():
            current = graph.view(found, size=self.rows(self.hidden))
        if self.kind.startswith("gemma") or self.kind in _SCALED_RESIDUAL:
            current = self.op("scale", current)
        return current

    def _deepstack(self) -> int:
        vision = self.facts.vision
        deep = vision.deepstack_layers if vision and vision.deepstack_layers else 0
        return deep if self.kind == "qwen3_vl" or self.kind == "qwen3_vl_moe" else 0

    def _inputs_of_attention(self) -> None:
        graph, batch = self.graph, self.batch
        width = 2 if batch.flash else 4
        # a transposed value cache is written value by value (llama-kv-cache.cpp)
        each = 1 if batch.flash or self.facts.latent_attention else heads(self.facts).key
        self.index = {
            name: graph.input(8 * batch.tokens * (each if name[0] == "v" else 1))
            for name in ("k", "v", "k_s", "v_s")
        }
        self.turn = graph.input(_F32 * 64 * 64)
        self.mask = {"full": graph.input(width * batch.cells * batch.tokens)}
        if batch.window_cells:
            self.mask["sliding"] = graph.input(width * batch.window_cells * batch.tokens)

    def _layer(self, before: Node, index: int, *, last: bool) -> Node:
        kind = layers(self.facts)[index]
        residual = before
        current = self.norm(before)
        if kind == "state":
            current = self._state_space(current)
        elif self.facts.latent_attention:
            current = self._latent(current)
        else:
            slides = kind == "sliding" and self.batch.window_cells > 0
            current = self._attention(current, "sliding" if slides else "full")
        if last and self.kind != "gpt_oss":
            current = self.op("get_rows", current, self.out_ids)
            residual = self.op("get_rows", residual, self.out_ids)
        if self.kind.startswith("gemma") and self.kind != "gemma":
            current = self.norm(current)
        if self.kind in _SCALED_RESIDUAL:
            current = self.op("scale", current)
        inner = self.op("add", current, residual)
        current = self._feed_forward(self.norm(inner), index)
        if self.kind.startswith("gemma") and self.kind != "gemma":
            current = self.norm(current)
        if self.kind in _SCALED_RESIDUAL:
            current = self.op("scale", current)
        after = (
            self.op("add", inner, current)
            if self.kind == "phi3"
            else self.op("add", current, inner)
        )
        if index < self._deepstack():
            part = self.graph.view(self.embedded, size=self.rows(self.hidden))
            after = self.op("add", after, part)
        return after

    def _attention(self, normed: Node, kind: str) -> Node:
        width = heads(self.facts)
        query, key, value = self._queries(normed, width.query, width.key)
        rotated = self.kind not in ("gpt2",)
        if rotated:
            query, key = self._rotated(query), self._rotated(key)
        if self.kind in _SCALED_QUERY:
            query = self.op("scale", query)
        if self.batch.rotated:
            query, key, value = (self._turned(node) for node in (query, key, value))
        self._store(query, key, value, kind)
        return self._attend(query, width.query, width.heads, kind, out=self.hidden)

    def _queries(self, normed: Node, query: int, key: int) -> tuple[Node, Node, Node]:
        graph = self.graph
        if self.kind in ("gpt2", "phi3"):
            fused = self.matmul(query + 2 * key, normed)
            if self.kind == "gpt2":
                fused = self.op("add", fused, self.weight)
            views = [graph.view(fused, size=self.rows(width)) for width in (query, key, key)]
            return views[0], views[1], views[2]
        made = []
        for width in (query, key, key):
            each = self.matmul(width, normed)
            if self.kind in _BIASED_QKV:
                each = self.op("add", each, self.weight)
            made.append(graph.view(each))
        return made[0], made[1], made[2]

    def _rotated(self, value: Node) -> Node:
        if self.kind in _QK_NORM:
            value = self.op("mul", self.op("rms_norm", value), self.weight)
        return self.op("rope", value, self.positions)

    def _turned(self, value: Node) -> Node:
        graph = self.graph
        return graph.view(graph.make("mul_mat", value.size, self.turn, graph.view(value)))

    def _store(self, query: Node, key: Node, value: Node, kind: str) -> None:
        graph = self.graph
        for node in (query, value, key):
            graph.expand(node)
        names = ("k", "v") if kind == "full" else ("k_s", "v_s")
        for node, name in zip((key, value), names, strict=True):
            cache = Node("weight", 0)
            graph.expand(graph.make("set_rows", 0, graph.view(node), self.index[name], cache))

    def _attend(self, query: Node, width: int, count: int, kind: str, *, out: int) -> Node:
        graph, batch = self.graph, self.batch
        mask = self.mask[kind if kind in self.mask else "full"]
        seen = graph.view(query)
        if batch.flash:
            mixed = graph.make("flash_attn", self.rows(width), seen, self.weight, mask)
        else:
            cells = batch.window_cells if kind == "sliding" else batch.cells
            scores = graph.make("mul_mat", self.rows(count * cells), self.weight, seen)
            if self.kind in _SOFT_CAPPED:
                for name in ("scale", "unary", "scale"):
                    scores = self.op(name, scores)
            scores = self.op("soft_max", scores, mask)
            mixed = graph.make("mul_mat", self.rows(width), self.weight, scores)
            mixed = graph.make("cont", self.rows(width), graph.view(mixed))
        graph.expand(mixed)
        mixed = graph.view(mixed)
        if batch.rotated:
            mixed = self._turned(mixed)
        current = self.matmul(out, mixed)
        if self.kind in ("gpt2", "phimoe", "gpt_oss"):
            current = self.op("add", current, self.weight)
        return current

    def _latent(self, normed: Node) -> Node:
        graph, latent = self.graph, self.facts.latent_attention
        assert latent is not None
        count = heads(self.facts).heads
        key_width = latent.kv_lora_rank + latent.qk_rope_head_dim
        query = normed
        if latent.q_lora_rank:
            query = self.norm(self.matmul(latent.q_lora_rank, normed))
        query = self.matmul(count * (latent.qk_nope_head_dim + latent.qk_rope_head_dim), query)
        whole = graph.view(query)
        plain = graph.view(whole, size=self.rows(count * latent.qk_nope_head_dim))
        turned = graph.view(whole, size=self.rows(count * latent.qk_rope_head_dim))
        packed = self.matmul(key_width, normed)
        squeezed = graph.view(packed, size=self.rows(latent.kv_lora_rank))
        key_turned = graph.view(packed, size=self.rows(latent.qk_rope_head_dim))
        turned = graph.make("rope", turned.size, turned, self.positions, kind="turned")
        absorbed = graph.make(
            "mul_mat", self.rows(count * latent.kv_lora_rank), self.weight, graph.view(plain)
        )
        query = graph.make("concat", self.rows(count * key_width), graph.view(absorbed), turned)
        graph.expand(query)
        squeezed = self.norm(squeezed)
        value = graph.view(squeezed)
        graph.expand(value)
        key_turned = graph.make("rope", key_turned.size, key_turned, self.positions, kind="turned")
        key = graph.make("concat", self.rows(key_width), value, key_turned)
        graph.expand(key)
        graph.expand(graph.make("set_rows", 0, graph.view(key), self.index["k"], self.weight))
        seen, wide = graph.view(query), self.rows(count * latent.kv_lora_rank)
        if self.batch.flash:
            mixed = graph.make("flash_attn", wide, seen, self.weight, self.mask["full"])
        else:
            scores = graph.make("mul_mat", self.rows(count * self.batch.cells), self.weight, seen)
            mixed = graph.make(
                "mul_mat", wide, self.weight, self.op("soft_max", scores, self.mask["full"])
            )
        values = count * latent.v_head_dim
        mixed = graph.make("mul_mat", self.rows(values), self.weight, graph.view(mixed))
        mixed = graph.make("cont", self.rows(values), graph.view(mixed))
        return self.matmul(self.hidden, graph.view(mixed))

    def _state_space(self, normed: Node) -> Node:
        graph, state = self.graph, self.facts.state_space
        assert state is not None
        channels = state.inner_size + 2 * state.groups * state.state_size
        packed = self.matmul(state.inner_size + channels + state.heads, normed)
        gate = graph.view(packed, size=self.rows(state.inner_size))
        mixed_in = graph.view(packed, size=self.rows(channels))
        step = graph.view(packed, size=self.rows(state.heads))
        padded = graph.make("concat", self.rows(channels) + 16 * channels, self.weight, mixed_in)
        graph.expand(graph.make("cpy", 0, graph.view(padded)))
        conv = graph.make("ssm_conv", self.rows(channels), padded, self.weight)
        conv = self.op("unary", self.op("add", conv, self.weight))
        step = graph.make("add", step.size, step, self.weight, kind="step")
        parts = [graph.view(conv, size=self.rows(state.inner_size)) for _ in range(3)]
        held = 4 * state.state_size * state.inner_size
        scanned = graph.make("ssm_scan", self.rows(state.inner_size) + held, *parts, step)
        graph.expand(graph.make("cpy", 0, graph.view(scanned)))
        shown = graph.view(scanned, size=self.rows(state.inner_size))
        skip = graph.make("mul", self.rows(state.inner_size), parts[0], self.weight, kind="skip")
        value = graph.make("add", self.rows(state.inner_size), shown, skip, kind="skip")
        value = graph.make("glu", self.rows(state.inner_size), gate, value)
        value = self.op("mul", self.op("rms_norm", value), self.weight)
        return graph.view(self.matmul(self.hidden, graph.view(value)))

    def _feed_forward(self, normed: Node, index: int) -> Node:
        facts = self.facts
        experts = facts.experts
        if experts is None or index < (experts.dense_layers or 0):
            return self._dense(normed, facts.intermediate_size or 0)
        current = self._experts(normed)
        shared = experts.shared_intermediate_size or (
            (experts.shared_experts or 0) * experts.intermediate_size
        )
        if shared:
            current = self.op("add", current, self._dense(normed, shared))
        return current

    def _dense(self, normed: Node, width: int) -> Node:
        graph = self.graph
        if self.kind == "phi3":
            up = self.matmul(2 * width, normed)
            active = graph.make("glu", self.rows(width), up)
        elif self.kind == "gpt2":
            active = self.op("unary", self.op("add", self.matmul(width, normed), self.weight))
        else:
            up, gate = self.matmul(width, normed), self.matmul(width, normed)
            active = graph.make("glu", self.rows(width), gate, up)
        down = self.matmul(self.hidden, active)
        return self.op("add", down, self.weight) if self.kind == "gpt2" else down

    def _experts(self, normed: Node) -> Node:
        graph, experts = self.graph, self.facts.experts
        assert experts is not None
        used, width = experts.experts_per_token, experts.intermediate_size
        scores = self.matmul(experts.experts, normed)
        if self.kind == "gpt_oss":
            scores = self.op("add", scores, self.weight)
        else:
            late = self.facts.latent_attention is not None
            scores = self.op("unary" if late else "soft_max", scores)
        choosing = self.op("add", scores, self.weight) if self.facts.latent_attention else scores
        chosen = graph.view(
            graph.make("argsort", self.rows(experts.experts), choosing), size=self.rows(used)
        )
        weights = graph.make("get_rows", self.rows(used), graph.view(scores), chosen)
        if self.kind == "gpt_oss":
            weights = graph.view(self.op("soft_max", graph.view(weights)))
        else:
            weights = graph.view(weights)
            total = graph.make("clamp", self.rows(1), graph.make("sum", self.rows(1), weights))
            weights = graph.view(graph.make("div", self.rows(used), weights, total))
        graph.expand(weights)
        token = graph.view(normed)
        biased = self.kind == "gpt_oss"
        up = graph.make("mul_mat_id", self.rows(used * width), self.weight, token, chosen)
        up = self.op("add", up, self.weight, chosen) if biased else up
        gate = graph.make("mul_mat_id", self.rows(used * width), self.weight, token, chosen)
        gate = self.op("add", gate, self.weight, chosen) if biased else gate
        active = graph.make("glu", self.rows(used * width), gate, up)
        out = graph.make("mul_mat_id", self.rows(used * self.hidden), self.weight, active, chosen)
        out = self.op("add", out, self.weight, chosen) if biased else out
        out = self.op("mul", out, weights)
        graph.expand(out)
        views = [graph.view(out, size=self.rows(self.hidden)) for _ in range(used)]
        for view in views:
            graph.expand(view)
        total = views[0]
        for view in views[1:]:
            total = graph.make("add", self.rows(self.hidden), total, view, kind="f32")
            graph.expand(total)
        return total

    def _output(self, current: Node) -> Graph:
        if self.kind == "gpt_oss":
            current.kept = True
            current = self.op("get_rows", current, self.out_ids)
        current = self.norm(current)
        if self.kind == "kimi_k2" or self.kind == "deepseek_v3":
            current.kept = True
        current.kept = True
        logits = self.matmul(self.facts.vocab_size or 0, current)
        if self.kind == "phimoe":
            logits = self.op("add", logits, self.weight)
        if self.kind in _SOFT_CAPPED:
            for name in ("scale", "unary", "scale"):
                logits = self.op(name, logits)
        elif self.kind in _SCALED_RESIDUAL:
            logits = self.op("scale", logits)
        logits.kept = True
        self.graph.expand(logits)
        return self.graph


def _shown(count: int) -> range | list[int]:
    """Return the layers to build: all, or the first and last ones of a deep model."""
    if count <= _MOST_LAYERS:
        return range(count)
    half = _MOST_LAYERS // 2
    return [*range(half), *range(count - half, count)]

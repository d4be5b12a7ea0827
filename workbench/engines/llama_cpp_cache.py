"""The KV cache of llama.cpp between two turns: what the next prompt shares is not computed again.

A cache can be cut where every position is kept by itself. The state of a recurrent or hybrid model
cannot, so nothing of it is reused; a sliding-window cache may have lost what lies before the cut,
then all is computed anew. What is reused equals what was computed: a token's keys and values do not
change afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SEQUENCE = 0
_TO_THE_END = -1


class KeptPrefix:
    """Knows which ids the native cache holds from position 0 on.

    Args:
        module: The ``llama_cpp`` module.
        llama: The ``llama_cpp.Llama``.
        enabled: Whether anything is reused at all.
    """

    def __init__(self, module: Any, llama: Any, *, enabled: bool) -> None:
        self._c, self._llama = module, llama
        stateful = module.llama_model_is_recurrent(llama.model)
        stateful = stateful or module.llama_model_is_hybrid(llama.model)
        self._enabled = enabled and not stateful
        self._memory = module.llama_get_memory(llama.ctx)
        self._window = int(module.llama_model_n_swa(llama.model))
        self._ids: list[int] = []
        self._held = False

    def disable(self) -> None:
        """Reuse nothing from now on: somebody else may write into the cache."""
        self._enabled = False
        self._ids = []

    def forget(self) -> None:
        """Empty the cache."""
        self._ids, self._held = [], False
        self._llama.reset()  # whoever uses model.raw next must not trust its own cache
        if self._memory is not None:
            self._c.llama_memory_clear(self._memory, False)

    def hold(self) -> None:
        """Note nothing more until the cache is emptied: images came into it, which have no ids."""
        self._held = True

    def decoded(self, ids: Sequence[int]) -> None:
        """Note ids that were decoded behind the ones before."""
        if not self._held:
            self._ids.extend(ids)

    def take(self, ids: Sequence[int]) -> int:
        """Cut the cache to what it shares with a prompt and return how many ids that are.

        The last id of the prompt is never among them: its logits are needed.
        """
        shared = self._shared(ids)
        if shared and self._cut(shared):
            self._llama.reset()
            self._ids = list(ids[:shared])
            return shared
        self.forget()
        return 0

    def _shared(self, ids: Sequence[int]) -> int:
        if not self._enabled or self._memory is None:
            return 0
        most = min(len(self._ids), len(ids) - 1)
        if self._ids[:most] == list(ids[:most]):
            return most
        return next(at for at in range(most) if self._ids[at] != ids[at])

    def _cut(self, shared: int) -> bool:
        """Remove all from a position on; False where llama.cpp cannot, or lost what lies before."""
        memory = self._memory
        if self._c.llama_memory_seq_pos_max(memory, _SEQUENCE) + 1 < shared:
            return False
        if not self._c.llama_memory_seq_rm(memory, _SEQUENCE, shared, _TO_THE_END):
            return False
        if self._c.llama_memory_seq_pos_max(memory, _SEQUENCE) + 1 != shared:
            return False
        oldest = self._c.llama_memory_seq_pos_min(memory, _SEQUENCE)
        return bool(oldest <= max(0, shared - self._window)) if self._window else True

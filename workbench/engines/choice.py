"""Choose the next token from logits with transformers' own processors: greedy or sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.errors import EngineError
from workbench.messages import Sampling


class Choice:
    """Chooses the tokens of one reply.

    The order is transformers' own: repetition penalty, temperature, top-k, top-p, min-p.

    Args:
        sampling: How to choose.
        prompt: Token ids of the prompt, which the repetition penalty counts in.
        device: Torch device of the logits.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], device: Any) -> None:
        import torch

        self._torch = torch
        self._greedy = sampling.temperature == 0
        self._processors = _processors(sampling)
        self._seen: Any = None
        if sampling.repetition_penalty != 1:
            self._seen = torch.tensor([list(prompt)], device=device)
        self._generator: Any = None
        if not self._greedy:
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed % 2**64)
        self._first = True

    def __call__(self, logits: Any) -> int:
        """Return the id chosen from the logits of one position, shape [vocab].

        Raises:
            EngineError: The logits are not finite numbers.
        """
        torch = self._torch
        if self._first:
            self._first = False
            _check_finite(torch, logits)
        if self._processors:
            logits = self._processors(self._seen, logits.float()[None])[0]
        if self._greedy:
            chosen = int(torch.argmax(logits))
        else:
            weights = torch.softmax(logits.float(), -1)
            chosen = int(torch.multinomial(weights, 1, generator=self._generator))
        if self._seen is not None:
            self._seen = torch.nn.functional.pad(self._seen, (0, 1), value=chosen)
        return chosen


def _check_finite(torch: Any, logits: Any) -> None:
    if not bool(torch.isfinite(logits.max())):
        raise EngineError(
            "The model's output is not a number (NaN or infinite).",
            hint="Its dtype may be too small for these weights: try dtype='bf16' or 'fp32'.",
        )


def _processors(sampling: Sampling) -> Any:
    from transformers.generation import logits_process as library

    found = library.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        found.append(library.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return found
    if sampling.temperature != 1:
        found.append(library.TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        found.append(library.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(library.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        found.append(library.MinPLogitsWarper(sampling.min_p))
    return found

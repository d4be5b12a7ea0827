"""Trains the embedded model, resumable to the bit: every step's data comes from seed and step."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from builder.corpus import Message, conversations
from builder.tokenizer import CONTEXT, END, PAD, START

BLOCK = 8  # steps whose data is drawn together: 5 of single questions, 2 of 256, 1 of 512 tokens
PROMPT_WEIGHT = 0.1  # loss weight of tokens that the model does not write itself


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the model; the defaults are what ships."""

    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 768


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to train."""

    seed: int = 0
    steps: int = 5500
    rows: int = 64  # single questions per step
    warmup: int = 100  # steps
    peak: float = 2e-3  # learning rate
    decay: float = 0.35  # share of the steps, at the end, in which the rate falls to zero
    save_every: int = 250  # steps
    bf16: bool = False  # matrix products in bfloat16 (twice as fast where the CPU has them)

    def rate(self, step: int) -> float:
        """The learning rate of this step: up, level, down."""
        falling = self.steps * self.decay
        left = (self.steps - step) / max(falling, 1)
        return self.peak * min(1.0, (step + 1) / self.warmup, left)


class Encoder:
    """Turns conversations into token ids and loss weights with a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self.pad = tokenizer.token_to_id(PAD)
        self._start = tokenizer.token_to_id(START)
        self._end = tokenizer.token_to_id(END)
        self._ids = lru_cache(maxsize=65536)(
            lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids)
        )

    def __call__(self, messages: list[Message]) -> tuple[list[int], list[float]]:
        """Ids and weights of one conversation as the chat template writes it."""
        ids: list[int] = []
        weights: list[float] = []
        for message in messages:
            own = message["role"] == "assistant"
            head = [self._start, *self._ids(f"{message['role']}\n")]
            body = [*self._ids(message["content"]), self._end]
            ids += [*head, *body, *self._ids("\n")]
            weights += [PROMPT_WEIGHT] * len(head) + [1.0 if own else PROMPT_WEIGHT] * len(body)
            weights += [PROMPT_WEIGHT]
        return ids, weights


Row = tuple[list[int], list[float]]


def packed(stream: Any, encode: Encoder, *, rows: int, length: int) -> list[Row]:
    """Rows of exactly `length` tokens: conversations one after the other."""
    result: list[Row] = []
    for _ in range(rows):
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            more, more_weights = encode(next(stream))
            ids += [*more, encode.pad]
            weights += [*more_weights, PROMPT_WEIGHT]
        result.append((ids[:length], weights[:length]))
    return result


@lru_cache(maxsize=2)
def block(encode: Encoder, seed: int, number: int, rows: int) -> list[list[Row]]:
    """The batches of one block of steps, rows of like length together."""
    stream = conversations(seed, number)
    short = sorted((encode(next(stream)) for _ in range(rows * 5)), key=lambda row: len(row[0]))
    batches = [short[i * rows : (i + 1) * rows] for i in range(5)]
    stream = conversations(seed, number, turns=(1, 2, 3, 4))
    for length in (256, 256, 512):
        count = max(1, rows * 48 // length)
        batches.append(packed(stream, encode, rows=count, length=length))
    random.Random(f"order|{seed}|{number}").shuffle(batches)
    return batches


def tensors(rows: list[Row], pad: int) -> tuple[Any, Any]:
    """Token ids (int64) and weights (float32) of a batch, both of shape (rows, longest)."""
    import torch

    longest = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    weights = torch.zeros(len(rows), longest)
    for i, (row, row_weights) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(row_weights)
    return ids, weights


def new_model(vocabulary: int, shape: Shape, *, seed: int, pad: int, end: int) -> Any:
    """A fresh `LlamaForCausalLM` in fp32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def new_optimizer(model: Any, rate: float) -> Any:
    """AdamW with weight decay on the matrices of the layers only."""
    import torch

    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def loss_of(model: Any, ids: Any, weights: Any) -> Any:
    """Weighted cross-entropy of the next token, one number."""
    import torch

    logits = model(input_ids=ids[:, :-1]).logits
    each = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1), reduction="none"
    )
    weight = weights[:, 1:].reshape(-1)
    return (each * weight).sum() / weight.sum()


def save_checkpoint(path: Path, model: Any, optimizer: Any, *, step: int) -> None:
    """Write weights, optimizer state and the number of finished steps, all or nothing."""
    import torch

    part = path.with_suffix(".part")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path: Path, model: Any, optimizer: Any) -> int:
    """Restore what `save_checkpoint` wrote and return the finished steps; 0 without a file."""
    import torch

    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def train(
    tokenizer: Any,
    plan: Plan,
    *,
    checkpoint: Path,
    shape: Shape | None = None,
    stop_at: int | None = None,
    after_save: Callable[[Any, int], None] | None = None,
) -> tuple[Any, list[float]]:
    """Train up to `plan.steps` (or stop early at `stop_at`), from the checkpoint if there is one.

    Returns the model (fp32) and the loss of every step of this call.
    """
    import torch

    encode = Encoder(tokenizer)
    model = new_model(
        tokenizer.get_vocab_size(),
        shape or Shape(),
        seed=plan.seed,
        pad=encode.pad,
        end=tokenizer.token_to_id(END),
    )
    optimizer = new_optimizer(model, plan.peak)
    first = load_checkpoint(checkpoint, model, optimizer)
    last = min(plan.steps, stop_at if stop_at is not None else plan.steps)
    losses: list[float] = []
    began = time.monotonic()
    model.train()
    for step in range(first, last):
        rows = block(encode, plan.seed, step // BLOCK, plan.rows)[step % BLOCK]
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            loss = loss_of(model, *tensors(rows, encode.pad))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        done = step + 1
        if done % 20 == 0 or done == last:
            speed = (done - first) / (time.monotonic() - began)
            recent = sum(losses[-40:]) / len(losses[-40:])
            left = (last - done) / speed / 60
            print(
                f"step {done}/{last}  loss {recent:.4f}  {speed:.2f} steps/s  {left:.1f} min left",
                flush=True,
            )
        if done % plan.save_every == 0 or done == last:
            save_checkpoint(checkpoint, model, optimizer, step=done)
            if after_save is not None:
                after_save(model, done)
    return model, losses

"""Merge a LoRA adapter into its base and check the logits (runs in a child)."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from workbench.errors import FormatError, ParityError, UnsupportedError
from workbench.export.adapter import CONFIG, WEIGHTS
from workbench.formats.child import emit

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "tekken.json",
)  # fmt: skip
_ROOM = 6  # bytes of free memory asked for each parameter to merge in float32


def main(arguments: list[str]) -> None:
    """Merge: one JSON object with adapter, base, out, dtype, texts and limit (child side)."""
    import torch

    given = json.loads(arguments[0])
    adapter, base, out = (Path(given[name]) for name in ("adapter", "base", "out"))
    dtype = getattr(torch, _DTYPES[given["dtype"]])
    torch.set_grad_enabled(False)

    model = _adapted(adapter, base, merge_dtype=_merge_dtype(given["parameters"], dtype))
    ids = _ids(adapter, base, given["texts"])
    emit("progress", done=1, total=4)
    expected = [_log_probabilities(model, each) for each in ids]
    emit("progress", done=2, total=4)
    merged = model.merge_and_unload(safe_merge=True)
    _untie_if_different(merged)
    merged.to(dtype)
    _save(merged, adapter, base, out)
    del model, merged
    emit("progress", done=3, total=4)
    figures = _check(out, ids, expected, limit=given["limit"])
    emit("progress", done=4, total=4)
    emit("result", values=figures)


def _merge_dtype(parameters: int, dtype: Any) -> Any:
    """Return float32, in which adding rounds only once, or ``dtype`` where memory is short."""
    import psutil
    import torch

    enough = psutil.virtual_memory().available > _ROOM * parameters
    return torch.float32 if enough else dtype


def _adapted(adapter: Path, base: Path, *, merge_dtype: Any) -> Any:
    """Load the base with the adapter on top; every tensor of the adapter must have its place."""
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from workbench.formats.safetensors import header

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=merge_dtype, use_safetensors=True, local_files_only=True,
        attn_implementation="eager",
    )  # fmt: skip
    stored = header(adapter / WEIGHTS)
    _grow_vocabulary(model, stored)
    _untie_adapted(model, adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell of is checked below
            adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise FormatError(
            f"The adapter {adapter.name} does not fit the base {base.name}: {first}",
            hint="Give base=, the model it was trained on.",
        ) from None
    own = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    # copies of the embeddings are saved along with an adapter on them, or not
    copies = ("embed", ".base_layer.")
    strange = sorted(n for n in set(stored) ^ own if not any(word in n for word in copies))
    if strange:
        raise FormatError(
            f"The adapter {adapter.name} does not fit the base {base.name}: {len(strange)} tensors "
            f"have no counterpart, the first is {strange[0]}.",
            hint="Give base=, the model it was trained on.",
        )
    return adapted.eval()


def _grow_vocabulary(model: Any, stored: dict[str, dict[str, Any]]) -> None:
    """Give the base as many rows as the embedding that the adapter carries, if it does."""
    rows = [
        entry["shape"][0]
        for name, entry in stored.items()
        if name.replace(".base_layer", "").endswith(("embed_tokens.weight", "lm_head.weight"))
    ]
    if rows and max(rows) != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(rows))


def _untie_adapted(model: Any, adapter: Path) -> None:
    """Part the two embeddings when the adapter changes one: else merging would change both."""
    import torch

    output, tied = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None or output.weight is not tied.weight:
        return
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    if config.get("ensure_weight_tying"):
        return
    named = [config.get(key) or [] for key in ("target_modules", "modules_to_save")]
    words = [word for given in named for word in ([given] if isinstance(given, str) else given)]
    if any("lm_head" in word or "embed" in word or word == "all-linear" for word in words):
        output.weight = torch.nn.Parameter(output.weight.clone(), requires_grad=False)


def _untie_if_different(model: Any) -> None:
    """Say in the configuration that the embeddings are two, when they came to differ."""
    import torch

    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if last is None or first.weight is last.weight:
        return
    same = first.weight.shape == last.weight.shape and torch.equal(first.weight, last.weight)
    model.config.tie_word_embeddings = same
    text = model.config.get_text_config()
    text.tie_word_embeddings = same
    if same:
        last.weight = first.weight


def _ids(adapter: Path, base: Path, texts: list[Any]) -> list[list[int]]:
    """Return the token ids to check on: rendered conversations where there is a template."""
    from transformers import AutoTokenizer

    own = (adapter / "tokenizer.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(adapter if own else base, local_files_only=True)
    rendered = [
        tokenizer.apply_chat_template(turns, tokenize=False)
        if tokenizer.chat_template
        else "\n".join(turn["content"] for turn in turns)
        for turns in texts
    ]
    return [tokenizer.encode(text, add_special_tokens=False)[:512] for text in rendered]


def _log_probabilities(model: Any, ids: list[int]) -> Any:
    import torch

    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits.double(), -1)


def _save(model: Any, adapter: Path, base: Path, out: Path) -> None:
    """Save weights and configuration; tokenizer, template and generation settings as they are."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # the base's own file follows, as it is
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    for path in out.glob("*.safetensors"):
        path.chmod((out / "config.json").stat().st_mode)  # they are written for the owner only
    for name in (*_TOKENIZER_FILES, "generation_config.json", "LICENSE"):
        for folder in (adapter, base):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
                break


def _check(out: Path, ids: list[list[int]], expected: list[Any], *, limit: float) -> dict[str, Any]:
    """Load what was saved and compare it with the unmerged adapter, in float32 both."""
    import torch
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, use_safetensors=True, local_files_only=True,
        attn_implementation="eager", output_loading_info=True,
    )  # fmt: skip
    if loading.get("missing_keys"):
        raise UnsupportedError(f"The merged model lacks {sorted(loading['missing_keys'])[:3]}.")
    total = same = count = 0.0
    for each, before in zip(ids, expected, strict=True):
        after = _log_probabilities(model.eval(), each)
        total += float((before.exp() * (before - after)).sum())
        same += float((before.argmax(-1) == after.argmax(-1)).sum())
        count += len(each)
    mean = max(total / count, 0.0)
    if not mean <= limit:
        raise ParityError(
            f"The merged model differs from the adapter on its base: mean KL {mean:.2g} nats, "
            f"more than {limit:.2g}.",
            hint="Nothing was kept. Merge with dtype='fp32' to see whether rounding is the cause.",
        )
    return {"mean_kl": mean, "top1": same / count, "tokens": int(count)}

"""A tiny Llama that says the same each time: a thought, an answer and a tool call, by its weights.

Its layers add nothing; the output matrix names for each token of the reply the one after it. So any
engine that loads the files says the reply, and has to tell its parts apart.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

from random_models import tokenizer

ARGUMENTS = {"a": 1}
THINKING, ANSWER = "hm", "yes"
_PHRASES = ('{"name": "add", ', '"arguments": {"a": 1}}')
_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
        },
    },
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n# Tools\n\nYou may call functions:\n<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n\nFor each call return a "
    'JSON object within <tool_call></tool_call>:\n<tool_call>\n{"name": <function-name>, '
    '"arguments": <args-json-object>}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<tool_call>"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>"
    "{% endif %}{% endif %}"
)


def save_parrot(folder: Path) -> Path:
    """Write the model with its tokenizer and template, and return the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    own = copy.deepcopy(tokenizer())
    own.add_tokens([*_MARKS, *_PHRASES])
    own.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(own), hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=64, tie_word_embeddings=False,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float()
    said = f"<think>{THINKING}</think>{ANSWER}<tool_call>{''.join(_PHRASES)}</tool_call>"
    (before,) = own("\n")["input_ids"]
    chain = [before, *own(said)["input_ids"], 2]
    assert len(set(chain)) == len(chain), "each token says what follows, so none comes twice"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (model.model.norm, *(m for m in model.modules() if "RMSNorm" in str(type(m)))):
            norm.weight.fill_(1.0)
        for place, (token, after) in enumerate(itertools.pairwise(chain)):
            model.model.embed_tokens.weight[token, place] = 1.0
            model.lm_head.weight[after, place] = 4.0
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    return folder

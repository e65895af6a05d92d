"""Chat templates of published instruction-tuned models, as their repositories have them.

Qwen's are cut: tools, tool calls and tool results are left out, and of Qwen3 also `reasoning_content` as a field of its own.
`test_conversations.py` compares what is left with the whole templates that TRL keeps.
"""

from __future__ import annotations

import functools
from typing import Any

from rcsd_jax.checkpoints.tokenizer import on_a_fixed_day

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == "
    "'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + "
    "role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{'<start_of_turn>model\n'}}{% endif %}"
)
# The next one's system text goes into the first user turn.
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\n\n' -%}"
    "{%- set turns = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for message in turns -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}{{ message['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{%- if message.role != 'system' or not loop.first %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# An assistant turn after the last user turn gets a thinking block; earlier ones lose theirs.
QWEN3 = (
    "{%- set ns = namespace(last=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}{%- set content = message.content %}"
    "{%- set thought = '' %}{%- if message.role == 'assistant' and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{%- else %}{{- content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
# It writes the date, and that it thinks or not, into a system turn, and an empty thought before answers without one.
SMOLLM3 = (
    "{%- set thinks = enable_thinking is not defined or enable_thinking -%}{%- set own = '' -%}{{- '<|im_start|>system\n' -}}"
    "{%- if messages[0].role == 'system' -%}{%- set own = messages[0].content.rstrip() -%}{%- endif -%}"
    "{{- '## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: ' ~ strftime_now('%d %B %Y') ~ '\nReasoning Mode: ' -}}"
    "{{- ('/think' if thinks else '/no_think') ~ '\n\n## Custom Instructions\n\n' -}}{{- (own or "
    "'You are a helpful AI assistant named SmolLM, trained by Hugging Face.') ~ '\n\n<|im_end|>\n' -}}"
    "{%- for message in messages -%}{%- if message.role == 'user' -%}{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' -%}{{ '<|im_start|>assistant\n' + ('' if thinks else '<think>\n\n</think>\n') + "
    "message.content.lstrip('\n') + '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\n' + ('' if thinks else '<think>\n\n</think>\n') }}{%- endif -%}"
)
# The last answer ends with the token that ends a text, also in the next.
OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token + ('' if loop.last else '\n') }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
# Its system turn says that there are no functions.
OLMO3 = (
    "{% set nothing = ' You do not currently have access to any functions. <functions></functions><|im_end|>\n' %}"
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Olmo, a helpful AI assistant built by Ai2.' + nothing }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% if message['role'] == 'system' %}{{ nothing }}{% elif message['role'] == 'assistant' and loop.last %}{{ eos_token }}{% else %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% if loop.last and add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{% endfor %}"
)
# Without a system turn it writes one with the date.
GRANITE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\n"
    "Today\\'s Date: ' + strftime_now('%B %d, %Y') + '.\nYou are Granite, developed by IBM. You are a helpful AI assistant."
    "<|end_of_text|>\n' }}{%- endif %}{%- for message in messages %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + "
    "message['content'] + '<|end_of_text|>\n' }}{%- if loop.last and add_generation_prompt %}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}{%- endfor %}"
)

TEMPLATES = {
    "qwen3": QWEN3, "qwen2_5": QWEN25, "llama3": LLAMA3, "smollm2": SMOLLM2, "gemma": GEMMA, "gemma3": GEMMA3, "smollm3": SMOLLM3,
    "olmo2": OLMO2, "olmo3": OLMO3, "granite": GRANITE,
}  # fmt: skip
_SPECIAL = (
    "<bos>", "<pad>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<think>", "</think>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
)  # fmt: skip


@functools.cache
def tokenizer_with(name: str) -> Any:
    """A tokenizer with a token for every byte and every special token, and the template of that name."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<bos>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=[token for token in _SPECIAL if token not in ("<bos>", "<pad>", "<|im_end|>")],
        chat_template=on_a_fixed_day(TEMPLATES[name]),
    )

"""Chat templates for files without one, chosen by the names of their special tokens. Does not render.

Sources: the published formats of Llama 2, Llama 3, Mistral 7B Instruct v0.1, ChatML, Zephyr, DeepSeek V2 and Gemma.
"""

from __future__ import annotations

from collections.abc import Mapping

_LLAMA2 = """\
{%- if messages[0]['role'] == 'system' -%}
  {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
  {%- set messages = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + message['content'].strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

_LLAMA3 = """\
{%- for message in messages -%}
  {{- (bos_token if loop.first else '') + '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
      + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""

_ALTERNATING = """\
{%- if messages[0]['role'] == 'system' -%}
  {%- set system = messages[0]['content'] + '\\n\\n' -%}
  {%- set messages = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
"""
"""The head of templates whose system message stands in the first turn of the user."""

_MISTRAL = (
    _ALTERNATING
    + """\
  {%- if message['role'] == 'user' -%}
    {{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' -}}
  {%- else -%}
    {{- ' ' + message['content'] + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""
)

_CHATML = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

_ZEPHYR = """\
{%- for message in messages -%}
  {{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>\\n' -}}
{%- endif -%}
"""

_DEEPSEEK = """\
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- 'User: ' + message['content'] + '\\n\\n' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'Assistant: ' + message['content'] + eos_token -}}
  {%- else -%}
    {{- message['content'] + '\\n\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- 'Assistant:' -}}
{%- endif -%}
"""

_GEMMA = (
    _ALTERNATING
    + """\
  {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n'
      + (system if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""
)

BUILTIN = {
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "chatml": _CHATML,
    "zephyr": _ZEPHYR,
    "deepseek": _DEEPSEEK,
    "gemma": _GEMMA,
}
_TOKENS = (
    ("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    ("chatml", ("<|im_start|>", "<|im_end|>")),
    ("gemma", ("<start_of_turn>", "<end_of_turn>")),
    ("deepseek", ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")),
    ("mistral", ("[INST]", "[/INST]")),
    ("zephyr", ("<|user|>", "<|assistant|>", "</s>")),
)


def template_for(names: Mapping[str, int]) -> str | None:
    """The name of the built-in template for these special tokens, or None.

    Llama 2's format has only <s> and </s>, as many others have, so it must be chosen by name.
    """
    return next((name for name, needed in _TOKENS if all(token in names for token in needed)), None)

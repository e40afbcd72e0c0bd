"""Render tests/golden/templates/*.jinja with transformers, for tests/unit/test_chat.py: writes templates/rendered.json.

    golden-venv/bin/python tests/golden/make_template_goldens.py

The templates are those that models are published with, or are written after them. A text that is no string there is
what the template said when it refused the conversation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from tokenizers import models
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from conversations import CONVERSATIONS

FOLDER = Path(__file__).with_name("templates")


def render(template: str, conversation: dict[str, Any]) -> str | dict[str, str]:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>"
    )
    try:
        return tokenizer.apply_chat_template(
            conversation["messages"],
            tools=conversation.get("tools"),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=conversation.get("add_generation_prompt", True),
            **conversation.get("variables", {}),
        )
    except (jinja2.TemplateError, TypeError) as error:
        return {"error": str(error)}


def main() -> None:
    rendered = {
        path.stem: {name: render(path.read_text("utf-8"), conversation) for name, conversation in CONVERSATIONS.items()}
        for path in sorted(FOLDER.glob("*.jinja"))
    }
    (FOLDER / "rendered.json").write_text(json.dumps(rendered, ensure_ascii=False, indent=1), "utf-8")


if __name__ == "__main__":
    main()

"""Encode texts with the folders of tests/tokenizer_folders.py by transformers: writes tokenizers/folders.json.

golden-venv/bin/python tests/golden/make_tokenizer_folder_goldens.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from tokenizer_folders import CASES, GOLDEN, TEXTS, write_folder


def main() -> None:
    encoded = {}
    with tempfile.TemporaryDirectory() as place:
        for i, case in enumerate(CASES):
            tokenizer = AutoTokenizer.from_pretrained(write_folder(Path(place) / str(i), case))
            encoded[case] = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    (GOLDEN / "folders.json").write_text(json.dumps(encoded, indent=0), "utf-8")


if __name__ == "__main__":
    main()

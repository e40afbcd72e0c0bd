"""The grammar of an answer, from flags named as in llama.cpp."""

from __future__ import annotations

from pathlib import Path

from dllama_zmq.errors import RequestError, UsageError
from dllama_zmq.grammar import Grammar


def grammar_of(
    schema: str | None, schema_file: Path | None, rules: str | None, rules_file: Path | None
) -> Grammar | None:
    """The grammar in one of these; None if none is given.

    Rules are in llama.cpp's notation, those of a .lark file in Lark's. Raises UsageError for more than one, or one that
    is empty or too long; RequestError for a file that cannot be read.
    or one that is empty or too long; RequestError for a file that cannot be read.
    """
    given = [one for one in (schema, schema_file, rules, rules_file) if one is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError("the answer can have only one form; give one of --json-schema, --grammar and their files")
    if schema is not None or schema_file is not None:
        grammar = Grammar("json_schema", schema or _content("--json-schema-file", schema_file))
    else:
        is_lark = rules_file is not None and rules_file.suffix == ".lark"
        grammar = Grammar("lark" if is_lark else "gbnf", rules or _content("--grammar-file", rules_file))
    try:
        grammar.check()
    except RequestError as error:
        raise UsageError(str(error)) from error
    return grammar


def _content(flag: str, path: Path | None) -> str:
    if path is None:  # the text of the flag is empty
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{flag} {path}: it cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise RequestError(f"{flag} {path}: it is not UTF-8 text") from None

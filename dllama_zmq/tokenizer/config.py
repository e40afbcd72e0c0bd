"""The configuration beside a tokenizer: keys of Hugging Face's files, checked. Knows no file, only their content.

Source: tokenizer_config.json, special_tokens_map.json and generation_config.json of transformers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from dllama_zmq.errors import FormatError
from dllama_zmq.tokenizer.data import END_OF_TURN

MAX_TEMPLATE_CHARS = 1 << 20
MAX_TOKEN_ID = 1 << 24
ENDS_TEXTS = (
    "it puts an end after each text (add_eos_token, or its post_processor), as training needs it; a prompt gets none, "
    "for nothing would follow it"
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class AddedToken:
    content: str
    special: bool


@dataclass(frozen=True)
class Config:
    """A tokenizer's configuration.

    words: names of tokens by their keys, such as `bos_token`. given: the keys that the files have, also with null.
    added: tokens beside the vocabulary, by id. add_eos: the files ask for an end after each text, which is not done.
    end_ids: all EOS ids; None if no file lists them. some_ends: EOS ids of config.json, which may be incomplete.
    legacy: SentencePiece puts its space also after special tokens. prefix: it puts one before a text; None: not given.
    templates: chat templates by name; the usual one is `default`.
    """

    words: dict[str, str] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    added: dict[int, AddedToken] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool = False
    end_ids: tuple[int, ...] | None = None
    some_ends: tuple[int, ...] = ()
    legacy: bool = True
    prefix: bool | None = None
    templates: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user is told of what is not followed here."""
        return (ENDS_TEXTS,) if self.add_eos else ()

    def token_id(self, word: str, names: Mapping[str, int], source: str, default: int | None) -> int | None:
        """The id of the `bos_token` or another key; `default` if the files do not have it.

        Raises FormatError if no token has its name.
        """
        if word not in self.given:
            return default
        if word not in self.words:
            return None
        if self.words[word] not in names:
            raise FormatError(
                f"{source}: {word} is {self.words[word][:60]!r}, which is not a token of this vocabulary."
            )
        return names[self.words[word]]

    def ends(self, eos_id: int | None, names: Mapping[str, int], pieces: Container[int]) -> tuple[int, ...]:
        """The EOS ids: `eos_id`, then the listed ones. If no file lists all, also the well-known ends of a turn.

        names: tokens that may be such ends. pieces: ids of all tokens.
        """
        listed = self.end_ids
        if listed is None:
            some = [token for token in self.some_ends if token in pieces]
            listed = (*some, *(names[name] for name in END_OF_TURN if name in names))
        return tuple(dict.fromkeys(((eos_id,) if eos_id is not None else ()) + listed))


def read_config(raw: Mapping[str, Any], source: str) -> Config:
    """The Config in `raw`: keys of tokenizer_config.json, `eos_token_id` of generation_config.json, and
    `model_eos_token_id`, the `eos_token_id` of config.json.

    Raises FormatError with the key of a value of the wrong type.
    """
    source = f"{source}'s config"
    words: dict[str, str] = {}
    given = []
    for name in _NAMED:
        if name not in raw:
            continue
        given.append(name)
        value = raw[name]
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            words[name] = value
        elif value is not None:
            raise wrong(source, name, value, "a token's name or null")
    add_bos, legacy, prefix = (_flag(raw, key, source) for key in ("add_bos_token", "legacy", "add_prefix_space"))
    return Config(
        words=words,
        given=frozenset(given),
        added=_added(raw.get("added_tokens_decoder") or {}, source),
        add_bos=add_bos,
        add_eos=_flag(raw, "add_eos_token", source) is True,
        end_ids=_ends(raw.get("eos_token_id"), source),
        some_ends=_ends(raw.get("model_eos_token_id"), source) or (),
        legacy="tokenizer_class" not in raw if legacy is None else legacy,  # transformers 5's default is false
        prefix=prefix,
        templates=read_templates(raw.get("chat_template"), source),
    )


def _flag(raw: Mapping[str, Any], key: str, source: str) -> bool | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong(source, key, value, "true or false")
    return value


def _added(raw: object, source: str) -> dict[int, AddedToken]:
    if not isinstance(raw, Mapping):
        raise wrong(source, "added_tokens_decoder", raw, "an object")
    added: dict[int, AddedToken] = {}
    for key, value in raw.items():
        place = f"added_tokens_decoder.{str(key)[:20]}"
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 9 and int(key) < MAX_TOKEN_ID):
            raise wrong(source, place, key, f"an id below {MAX_TOKEN_ID} as its key")
        content, special = (value.get("content"), value.get("special", False)) if isinstance(value, Mapping) else (0, 0)
        if not isinstance(content, str) or not content or not isinstance(special, bool):
            raise wrong(source, place, value, 'an object with "content", a text, and "special", true or false')
        added[int(key)] = AddedToken(content, special)
    return added


def _ends(raw: object, source: str) -> tuple[int, ...] | None:
    if raw is None:
        return None
    ids: list[int] = []
    for token in raw if isinstance(raw, list) else [raw]:
        if token == -1:  # no token
            continue
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < MAX_TOKEN_ID:
            raise wrong(source, "eos_token_id", token, f"an id from 0 to {MAX_TOKEN_ID - 1}, or a list of them")
        ids.append(token)
    return tuple(ids) or None


def read_templates(raw: object, source: str) -> dict[str, str]:
    """Chat templates by name, from a text or a list of {"name", "template"}."""
    if raw is None:
        return {}
    named: dict[str, str] = {}
    if isinstance(raw, str):
        named["default"] = raw
    elif isinstance(raw, list) and all(isinstance(entry, Mapping) for entry in raw):
        for entry in raw:
            name, template = entry.get("name"), entry.get("template")
            if not isinstance(name, str) or not isinstance(template, str):
                raise wrong(source, "chat_template", entry, 'objects with "name" and "template"')
            named[name] = template
    else:
        raise wrong(source, "chat_template", raw, "a text, or a list of named texts")
    for name, template in named.items():
        if len(template) > MAX_TEMPLATE_CHARS:
            raise FormatError(
                f"{source}: chat template {name[:40]!r} has {len(template)} characters; expected at most "
                f"{MAX_TEMPLATE_CHARS}."
            )
    return named


def wrong(source: str, key: str, value: object, expected: str) -> FormatError:
    """The error for a wrong value of `key`."""
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return FormatError(f"{source}: {key} is {shown[:60]}; expected {expected}. Get the file again.")

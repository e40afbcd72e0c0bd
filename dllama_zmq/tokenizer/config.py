"""The configuration beside a tokenizer: keys of Hugging Face's files, checked. Knows no file, only their content.

Source: tokenizer_config.json, special_tokens_map.json and generation_config.json of transformers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

from dllama_zmq.errors import FormatError
from dllama_zmq.threads import converted_by_threads
from dllama_zmq.tokenizer.data import END_OF_TURN
from dllama_zmq.typed import typed

MAX_TEMPLATE_CHARS = 1 << 20
MAX_TOKEN_ID = 1 << 24
ENDS_TEXTS = (
    "it adds an end token to each text (add_eos_token, or its post_processor), for training; prompts get none, "
    "because nothing could follow it"
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_Text = Annotated[str, Meta(min_length=1)]
_Id = Annotated[int, Meta(ge=0, lt=MAX_TOKEN_ID)]
_Ids = Annotated[int, Meta(ge=-1, lt=MAX_TOKEN_ID)] | list[Annotated[int, Meta(ge=-1, lt=MAX_TOKEN_ID)]] | None
_Template = Annotated[str, Meta(max_length=MAX_TEMPLATE_CHARS)]


class AddedToken(Struct, frozen=True):
    content: _Text
    special: bool = False


class _Named(Struct, frozen=True):
    content: str | None = None


class _NamedTemplate(Struct, frozen=True):
    name: str
    template: _Template


@converted_by_threads
class _Raw(Struct, frozen=True):
    """The keys that are read."""

    bos_token: str | _Named | UnsetType | None = UNSET
    eos_token: str | _Named | UnsetType | None = UNSET
    unk_token: str | _Named | UnsetType | None = UNSET
    pad_token: str | _Named | UnsetType | None = UNSET
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    add_prefix_space: bool | None = None
    legacy: bool | None = None
    added_tokens_decoder: dict[_Id, AddedToken] | None = None
    eos_token_id: _Ids = None
    model_eos_token_id: _Ids = None
    chat_template: _Template | list[_NamedTemplate] | None = None


class Config(Struct, frozen=True):
    """A tokenizer's configuration.

    words: names of tokens by their keys, such as `bos_token`. given: the keys that the files have, even with null.
    added: tokens beside the vocabulary, by id. add_eos: the files ask for an end after each text, which is ignored.
    end_ids: all EOS ids; None if no file lists them. some_ends: EOS ids of config.json, which may be incomplete.
    legacy: SentencePiece also puts its space after special tokens. prefix: it puts a space before a text; None: not
    given. templates: chat templates by name; the usual one is `default`.
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
        """Warnings about what the files ask for and this version does not do."""
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
        """The EOS ids: `eos_id`, then the listed ones. If no file lists all, the well-known ends of a turn too.

        names: tokens that may be such ends. pieces: the ids of all tokens.
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
    config = typed(raw, _Raw, f"{source}'s config")
    named = {name: getattr(config, name) for name in _NAMED}
    words = {name: value.content if isinstance(value, _Named) else value for name, value in named.items()}
    return Config(
        words={name: word for name, word in words.items() if isinstance(word, str)},
        given=frozenset(name for name in _NAMED if name in raw),
        added=config.added_tokens_decoder or {},
        add_bos=config.add_bos_token,
        add_eos=config.add_eos_token is True,
        end_ids=_ends(config.eos_token_id),
        some_ends=_ends(config.model_eos_token_id) or (),
        legacy="tokenizer_class" not in raw if config.legacy is None else config.legacy,  # transformers 5's default
        prefix=config.add_prefix_space,
        templates=_templates(config.chat_template),
    )


def _ends(ids: int | list[int] | None) -> tuple[int, ...] | None:
    """The ids without -1, which is no token."""
    listed = [] if ids is None else [ids] if isinstance(ids, int) else ids
    return tuple(token for token in listed if token != -1) or None


def _templates(raw: str | list[_NamedTemplate] | None) -> dict[str, str]:
    if isinstance(raw, str):
        return {"default": raw}
    return {one.name: one.template for one in raw or []}

"""The files of a repository that make up a model. Knows only their names, so hub and cache follow the same rules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from os.path import commonpath
from pathlib import PurePosixPath

from msgspec import Struct

from dllama_zmq.errors import UsageError
from dllama_zmq.hub.name import ModelName

DEFAULT_QUANT = "Q4_K_M"

_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.[a-z]+\Z)")
_QUANT = re.compile(r"(?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|BF16|F16|F32)", re.IGNORECASE)
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "tekken.json",
)
_MAX_PARTS = 10_000
_MAX_LISTED = 20


class SeveralModels(UsageError):
    """Several models have the name; the message lists them."""


class Choice(Struct, frozen=True):
    """The files of a model, by their names in the repository."""

    files: tuple[str, ...]
    model: str
    """The file or folder for `model:`; "" is the repository's own folder."""
    tokenizer: str | None = None
    """The file for `tokenizer:`, if the model needs one."""


def choose(names: Sequence[str], wanted: ModelName, place: str) -> Choice:
    """The files of `wanted` among `names`; messages begin with `place`.

    Raises UsageError if there is no such model or a part of it is missing, SeveralModels if there are several.
    """
    if wanted.file is None:
        return _default(names, wanted, place)
    files = _matching(names, wanted.file)
    if not files:
        raise UsageError(f"{place} has no {wanted.file!r}; {_nearest(names, wanted.file)}")
    return _of_files(names, files, wanted, place)


def all_models(names: Sequence[str], repo: str) -> dict[ModelName, Choice]:
    """Each complete model among `names`, by the name to type. The name has no file if there is only one model."""
    files = [*_gguf_models(names), *_m_files(names)]
    short: list[str | None] = [*(_short_names(files) if len(files) > 1 else [None] * len(files))]
    wanted = [ModelName(repo, file) for file in short] or [ModelName(repo)]
    found: dict[ModelName, Choice] = {}
    for name in wanted:
        with suppress(UsageError):
            found[name] = choose(names, name, repo)
    return found


def _default(names: Sequence[str], wanted: ModelName, place: str) -> Choice:
    ggufs = _gguf_models(names)
    if len(ggufs) > 1:
        default = [name for name in ggufs if _has_quant(name, DEFAULT_QUANT)]
        ggufs = default if len(default) == 1 else ggufs
    if ggufs:
        return _one_model(names, ggufs, wanted, place)
    if found := _m_files(names):
        return _one_model(names, found, wanted, place)
    return _hf_folder(names, place) or _meta_folder(names) or _refuse(names, place)


def _matching(names: Sequence[str], wanted: str) -> list[str]:
    """The files that `wanted` matches: as a path, else as a file name, a quantization or a glob."""
    low = wanted.lower()
    rules: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: name.lower() == low,
        lambda name: PurePosixPath(name).name.lower() == low,
        lambda name: name.endswith(".gguf") and not _is_projector(name) and _has_quant(name, wanted),
    )
    for rule in rules:
        if found := [name for name in names if rule(name)]:
            return found
    if not re.search(r"[*?\[]", low):
        return []
    return [name for name in names if fnmatchcase(name.lower(), low) or fnmatchcase(_base(name).lower(), low)]


def _of_files(names: Sequence[str], files: list[str], wanted: ModelName, place: str) -> Choice:
    """A model file with all its parts; all of `files` if none of them is a model by itself."""
    models = _first_parts(name for name in files if name.endswith((".gguf", ".m")))
    if models:
        return _one_model(names, models, wanted, place)
    files = sorted({*files, *(part for name in files for part in _parts(names, name, place))})
    return Choice(tuple(files), files[0] if len(files) == 1 else commonpath([f"/{name}" for name in files])[1:])


def _one_model(names: Sequence[str], models: list[str], wanted: ModelName, place: str) -> Choice:
    if len(models) > 1:
        like = f" like {wanted.file!r}" if wanted.file else ""
        short = _short_names(models)
        raise SeveralModels(
            f"{place} has {len(models)} models{like}: {_listed(short)}; choose one, as {wanted.repo}:{short[0]}"
        )
    parts = _parts(names, models[0], place)
    if models[0].endswith(".gguf"):
        return Choice(tuple(parts), parts[0])
    tokenizers = [name for name in names if name.endswith(".t")]
    return Choice((*parts, *tokenizers), parts[0], tokenizers[0] if len(tokenizers) == 1 else None)


def _parts(names: Sequence[str], name: str, place: str) -> list[str]:
    """All parts of the split model of `name`, in order; only `name` if it is not split."""
    part = _PART.search(name)
    if part is None:
        return [name]
    n_parts = int(part[2])
    if not 1 <= n_parts <= _MAX_PARTS:
        raise UsageError(f"{place} has {name}, one of {n_parts} parts; expected 1 to {_MAX_PARTS} parts: not a model")
    parts = [f"{name[: part.start()]}-{i:05}-of-{part[2]}{name[part.end() :]}" for i in range(1, n_parts + 1)]
    for missing in sorted(set(parts) - set(names)):
        raise UsageError(f"{place} has no {missing}, which {name} needs; choose another model, or pull it again")
    return parts


def _hf_folder(names: Sequence[str], place: str) -> Choice | None:
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.endswith(".safetensors") and not name.startswith("adapter_")]
    # Some repositories have the same weights twice, the second time under Meta's and Mistral's name.
    weights = [name for name in weights if not name.startswith("consolidated")] or weights
    if not weights or "config.json" not in top:
        return None
    weights = sorted({part for name in weights for part in _parts(top, name, place)})
    beside = ("config.json", "generation_config.json", *_TOKENIZER_FILES)
    others = [name for name in top if name in beside or name.endswith(".safetensors.index.json")]
    return Choice((*sorted(others), *weights), "")


def _meta_folder(names: Sequence[str]) -> Choice | None:
    for folder in ("", "original/"):
        top = [name for name in names if name.startswith(folder) and "/" not in name[len(folder) :]]
        weights = [name for name in top if fnmatchcase(name, f"{folder}consolidated.*.pth")]
        if weights and f"{folder}params.json" in names:
            others = [name for name in (f"{folder}params.json", f"{folder}tokenizer.model") if name in names]
            return Choice((*others, *sorted(weights)), folder.rstrip("/"))
    return None


def _refuse(names: Sequence[str], place: str) -> Choice:
    raise UsageError(
        f"{place} has no GGUF file, no safetensors with a config.json, no consolidated.*.pth with a params.json and no "
        f".m file; {_contents(names)}: name a file after a colon, or choose another repository"
    )


def _gguf_models(names: Iterable[str]) -> list[str]:
    return _first_parts(name for name in names if name.endswith(".gguf") and not _is_projector(name))


def _m_files(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".m")]


def _first_parts(names: Iterable[str]) -> list[str]:
    """Each model once, a split one by its first part."""
    return sorted({_PART.sub(lambda part: f"-00001-of-{part[2]}", name) for name in names})


def _is_projector(name: str) -> bool:
    """Whether the file is a vision projector or calibration data, which repositories have beside models."""
    return _base(name).lower().startswith(("mmproj", "imatrix"))


def _has_quant(name: str, quant: str) -> bool:
    if not _QUANT.fullmatch(quant):
        return False
    return re.search(rf"(?:\A|[-._/]){re.escape(quant)}(?=[-./])", name, re.IGNORECASE) is not None


def _short_names(models: Sequence[str]) -> list[str]:
    """The text after the colon for each model: its quantization if that is unique, else its name."""
    found = [_QUANT.findall(_PART.sub("", _base(name)).removesuffix(".gguf")) for name in models]
    quants = [words[-1] if words else "" for words in found]
    short = all(quants) and all(sum(_has_quant(name, quant) for name in models) == 1 for quant in quants)
    return quants if short else list(models)


def _nearest(names: Sequence[str], wanted: str) -> str:
    candidates = {name.lower(): name for name in names[:5000] if not name.startswith(".")}
    ggufs = _gguf_models(names[:5000])
    candidates |= {quant.lower(): quant for quant in _short_names(ggufs)}
    near = difflib.get_close_matches(wanted.lower(), candidates, n=4, cutoff=0.5)
    sentences = [f"the nearest are {', '.join(candidates[word] for word in near)}"] if near else []
    if ggufs or not near:
        sentences.append(_contents(_short_names(ggufs) or names))
    return "; ".join(sentences)


def _contents(names: Sequence[str]) -> str:
    return f"it has {_listed(names)}" if names else "it is empty"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _base(name: str) -> str:
    return PurePosixPath(name).name

"""The parts of a tokenizer from Meta's byte-level pieces and ranks of Llama 3. Knows no file.

Source of the pattern and of the 256 special tokens at the end: Meta's llama-models, models/llama3/tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.tokenizer.config import Config
from dllama_zmq.tokenizer.data import N_BYTES, TokenizerParts, checked_ids
from dllama_zmq.tokenizer.encoders import rank_encoder, with_names
from dllama_zmq.tokenizer.pretokenizers import LLAMA3, inferred

_N_SPECIALS = 256
_FIRST = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)


def llama3_specials(n_pieces: int) -> dict[str, int]:
    """Llama 3's special tokens by name, after `n_pieces` ordinary tokens."""
    names = [*_FIRST, *(f"<|reserved_special_token_{i}|>" for i in range(2, 2 + _N_SPECIALS - len(_FIRST)))]
    return {name: n_pieces + i for i, name in enumerate(names)}


def parts_of_ranks(ranks: Mapping[bytes, int], config: Config, source: str) -> TokenizerParts:
    """The parts of a vocabulary with ranks as ids."""
    if set(ranks.values()) != set(range(len(ranks))) or sum(len(piece) == 1 for piece in ranks) != N_BYTES:
        raise FormatError(
            f"{source}: expected all 256 bytes, and each of the ranks 0 to {len(ranks) - 1} once. Get it again."
        )
    if inferred(list(ranks)) != LLAMA3:
        raise UnsupportedModel(
            f"{source}: this version reads such a file only for Llama 3, and this is another vocabulary: Llama 3's has "
            f"numbers of up to three digits. Use the model's tokenizer.json."
        )
    bpe = rank_encoder(ranks, LLAMA3, source)
    specials = llama3_specials(len(ranks))
    added = {token: name.encode() for name, token in specials.items()}
    pieces = {token: piece for piece, token in ranks.items()} | added
    bos_id = specials["<|begin_of_text|>"]
    ends = config.end_ids or tuple(specials[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
    eos_ids = checked_ids(source, bos_id, ends, pieces)
    add_bos = config.add_bos is not False
    return TokenizerParts(
        source=source,
        pieces=pieces,
        silent=frozenset(added),
        specials=specials,
        plain_encoder=bpe,
        special_encoder=with_names(bpe, specials),
        bos_id=bos_id,
        eos_ids=eos_ids,
        add_bos=add_bos,
        templates=config.templates,
        words=config.words,
        notes=config.notes,
    )

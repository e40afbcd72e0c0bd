"""The parts of a tokenizer from byte-level pieces and their ranks, as Meta gives them for Llama 3. Knows no file.

Source: Meta's llama-models, models/llama3/tokenizer.py: the split, and the names of 256 special tokens at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.tokenizer.config import Config
from dllama_zmq.tokenizer.data import N_BYTES, TokenizerParts, checked_ids
from dllama_zmq.tokenizer.encoders import byte_level_encoder, rank_merges, with_names
from dllama_zmq.tokenizer.from_t import byte_level_data
from dllama_zmq.tokenizer.pretokenizers import LLAMA3, inferred

_N_SPECIALS = 256
_FIRST = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>",
)  # fmt: skip


def llama3_specials(n_pieces: int) -> dict[str, int]:
    """Llama 3's special tokens by name, for a vocabulary of `n_pieces` ordinary ones."""
    names = [*_FIRST, *(f"<|reserved_special_token_{i}|>" for i in range(2, 2 + _N_SPECIALS - len(_FIRST)))]
    return {name: n_pieces + i for i, name in enumerate(names)}


def parts_of_ranks(ranks: Mapping[bytes, int], config: Config, source: str) -> TokenizerParts:
    """The parts of a vocabulary whose ranks are its ids, 0 and up."""
    if set(ranks.values()) != set(range(len(ranks))) or sum(len(piece) == 1 for piece in ranks) != N_BYTES:
        raise FormatError(
            f"{source}: expected all of the 256 bytes, and the ranks 0 to {len(ranks) - 1} once each. Get it again."
        )
    if inferred(list(ranks)) != LLAMA3:
        raise UnsupportedModel(
            f"{source}: ranks of a vocabulary that is not Llama 3's (which has numbers of two and three digits, none "
            f"longer); this version reads no other of this kind. Use the model's tokenizer.json."
        )
    merges, reached = rank_merges(ranks)
    bpe = byte_level_encoder(ranks, merges, LLAMA3, source, whole=not reached)
    specials = llama3_specials(len(ranks))
    added = {token: name.encode() for name, token in specials.items()}
    pieces = {token: piece for piece, token in ranks.items()} | added
    bos_id = specials["<|begin_of_text|>"]
    ends = config.end_ids or tuple(specials[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
    eos_ids = checked_ids(source, bos_id, ends, pieces)
    add_bos = config.add_bos is not False
    template = config.templates.get("default")
    return TokenizerParts(
        source=source, pieces=pieces, silent=frozenset(added), specials=specials, plain=bpe,
        marked=with_names(bpe, specials), bos_id=bos_id, eos_ids=eos_ids, add_bos=add_bos, dummy_prefix=False,
        to_data=lambda: byte_level_data(
            ranks, merges, added, LLAMA3, not reached, bos_id, eos_ids, add_bos, template, source
        ),
        templates=config.templates, words=config.words,
    )  # fmt: skip

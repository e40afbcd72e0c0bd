"""How fast an answer was, in one line."""

from __future__ import annotations

from dllama_zmq.bus.client_messages import Prefill, StepStats, TokenText
from dllama_zmq.cli.stats import Stats


def stats(n_prompt: int, n_tokens: int) -> Stats:
    """A prompt in 2 s, and tokens of 0.1 s each, the first of which the prompt gives."""
    found = Stats()
    found.prompt(Prefill(1, n_prompt, n_prompt, n_prompt, 0, StepStats(2.0, 0.0, 0, 0, {})))
    for i in range(n_tokens):
        found.token(TokenText(1, i, "a", StepStats(0.1, 0.0, 0, 0, {}) if i else None, []))
    return found


def test_an_answer_has_its_tokens_and_both_speeds() -> None:
    assert stats(271, 15).sentence() == "15 tokens, 10.0 tokens/s; prompt 271 tokens, 135.5 tokens/s"


def test_an_answer_of_one_token_or_none_has_no_speed() -> None:
    assert stats(1, 1).sentence() == "1 token; prompt 1 token, 0.5 tokens/s"
    assert stats(2, 0).sentence() == "0 tokens; prompt 2 tokens, 1.0 tokens/s"

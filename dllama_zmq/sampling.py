"""The sampling parameters of a request: on the wire, in Python and on the command line. Knows no array."""

from __future__ import annotations

import msgspec

from dllama_zmq.errors import RequestError

MAX_BIASES = 1024
MAX_LOGPROBS = 20  # the limit of OpenAI's API
_INITIAL_K = 64


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are sampled. The default is greedy: always the most likely token.

    Under a grammar, tokens that it does not allow are removed first. The rest is applied in the order of transformers
    5.23 (GenerationMixin._get_logits_processor):

    1. `logit_bias`: by token id, -100 to 100, added to its logit.
    2. `repetition_penalty` (arXiv:1909.05858), for every token of the prompt and of the answer so far: divides its
    logit if positive, and multiplies it if negative. 1: off.
    3. `frequency_penalty` times the number of occurrences of a token in the answer so far, and `presence_penalty` if it
       occurs at all, are subtracted from its logit (the formula of OpenAI's API). 0: off.
    4. `temperature`: divides all logits. 0: greedy, and the following steps have no effect.
    5. `top_k`: keeps the k most likely tokens. 0: off.
    6. `top_p`: of these, keeps the fewest that hold top_p of their probability (arXiv:1904.09751). 1: off.
    7. `min_p`: keeps those with at least min_p times the probability of the most likely one (arXiv:2407.01082). 0: off.
    8. `typical_p`: of these, keeps the fewest that hold typical_p of their probability, beginning with those whose
    surprisal is nearest to the entropy (arXiv:2202.00666). 1: off.

    vLLM (v1/sample/sampler.py) does step 7 before 5, and has no step 8. llama.cpp (--samplers in
    tools/server/README.md) does 8 before 6 and 4 last, and its penalties cover only the last 64 tokens of prompt and
    answer.

    seed: equal seeds give equal answers; None: a new one for each request. logprobs: return the log-probability of each
    token and of this many most likely ones (0 to 20), by the model's own logits at temperature 1; None: none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None

    def check(self) -> None:
        """Raise RequestError, naming the value and its legal range."""
        _check("top_k", self.top_k, 0 <= self.top_k <= 1 << 24, "0 (off) or a number of tokens")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 1 << 63, "0 to 2^63 - 1")
        n_top, of_20 = self.logprobs, f"0 to {MAX_LOGPROBS}"
        _check("logprobs", n_top, n_top is None or 0 <= n_top <= MAX_LOGPROBS, of_20)
        if self.temperature != 0:  # below 0.001, logit / temperature could overflow
            _check_range("temperature", self.temperature, 0.001, 100, "0 (greedy), or 0.001 to 100")
        for name in ("top_p", "typical_p"):
            p = getattr(self, name)
            _check(name, p, 0 < p <= 1, "more than 0 and at most 1 (1: off)")
        _check_range("min_p", self.min_p, 0, 1, "0 (off) to 1")
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100, "0.01 to 100 (1: off)")
        for name in ("presence_penalty", "frequency_penalty"):
            _check_range(name, getattr(self, name), -2, 2, "-2 to 2 (0: off)")
        n_biases = len(self.logit_bias)
        _check("the number of tokens of logit_bias", n_biases, n_biases <= MAX_BIASES, f"at most {MAX_BIASES}")
        for token, bias in self.logit_bias.items():
            _check("logit_bias", token, token >= 0, "ids of tokens, 0 or more")
            _check_range(f"logit_bias of token {token}", bias, -100, 100, "-100 to 100")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    def initial_k(self) -> int:
        """The number of candidates to ask each node for at first; 0: all logits."""
        n_top = self.logprobs or 0
        if self.greedy:
            return max(1, n_top)
        if self.top_k:
            return max(min(self.top_k, _INITIAL_K), n_top)
        if self.typical_p < 1 and self.top_p == 1 and self.min_p == 0:
            return 0  # the entropy needs all logits
        return _INITIAL_K


GREEDY = Sampling()


def _check(name: str, value: float | None, is_legal: bool, legal: str) -> None:
    if not is_legal:
        raise RequestError(f"{name} is {value}; expected {legal}")


def _check_range(name: str, value: float, least: float, most: float, legal: str) -> None:
    _check(name, value, least <= value <= most, legal)  # NaN is never in a range

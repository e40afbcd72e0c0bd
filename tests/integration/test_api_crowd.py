"""Many clients of the API at once, some of which leave: each gets the text it would have alone, and nothing is left."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import until
from integration.api import NO_TLS, SOON_S, Api, running_api

N_CLIENTS, N_EACH = 16, (2, 1, 1, 1)
PROMPTS = ["once upon a time", "the cat and the dog", "he was the sun", "a time"]
ASK_EVERY_S = 0.02
MAX_MORE_BYTES = 2 << 20
"""From one crowd to the next, the least of some: what requests leave is left by each of them, and what the C library
keeps comes at any time."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api"), small_model) as api:
        yield api


def body(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 30, "temperature": 0, "stream": True}


def play(api: Api, rng: random.Random, expected: dict[str, str], n_requests: int) -> int:
    """Some requests of one client, of which it leaves a third in the middle; how many were whole."""
    n_whole = 0
    with httpx.Client(base_url=api.url, timeout=SOON_S, verify=NO_TLS) as client:
        for _ in range(n_requests):
            prompt, leaves_after = rng.choice(PROMPTS), rng.choice([rng.randrange(20), 1000, 1000])
            text, done = "", False
            with client.stream("POST", "/v1/completions", json=body(prompt)) as reply:
                assert reply.status_code == 200, reply.read()
                for number, line in enumerate(reply.iter_lines()):
                    if number > leaves_after:
                        break
                    if line.startswith("data: {"):
                        text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                    done = done or line == "data: [DONE]"
            assert expected[prompt] == text if done else expected[prompt].startswith(text)
            n_whole += done
    return n_whole


def test_a_crowd_gets_the_texts_of_one_and_leaves_nothing(api: Api) -> None:
    expected = {}
    for prompt in PROMPTS:
        chunks = api.chunks("/v1/completions", **body(prompt))
        expected[prompt] = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    (server,) = api.cli.processes_of("gateway")
    n_files, rngs = server.num_fds(), [random.Random(seed) for seed in range(N_CLIENTS)]
    took, taken, n_whole = list[float](), list[int](), 0
    with ThreadPoolExecutor(N_CLIENTS) as pool:
        for n_each in N_EACH:
            played = [pool.submit(play, api, rng, expected, n_each) for rng in rngs]
            while wait(played, ASK_EVERY_S).not_done:
                begun = time.monotonic()
                assert api.http.get("/health").status_code == 200
                took.append(time.monotonic() - begun)
            n_whole += sum(one.result() for one in played)
            until(lambda: api.cli.status().active == 0, SOON_S, "the requests of clients that have gone to end")
            until(lambda: server.num_fds() <= n_files, SOON_S, "the server to close its connections")
            taken.append(server.memory_info().rss)
    assert n_whole > N_CLIENTS * sum(N_EACH) / 3
    more = [after - before for before, after in itertools.pairwise(taken)]  # the first crowd's may be kept
    print(
        f"/health: median {1000 * statistics.median(took):.1f} ms, most {1000 * max(took):.1f} ms of {len(took)}; "
        f"{', '.join(f'{n / 1e6:.1f}' for n in more)} MB more"
    )
    assert min(more) < MAX_MORE_BYTES
    assert "Traceback" not in (api.cli.log_folder / "gateway.log").read_text()


def test_a_server_that_has_not_read_in_time_says_so_and_serves_the_next_request(api: Api) -> None:
    (server,) = api.cli.processes_of("gateway")
    long = body("once") | {"max_tokens": 1900, "ignore_eos": True, "n": 16}
    with api.http.stream("POST", "/v1/completions", json=long) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data: {")
        server.suspend()
        try:
            until(lambda: api.cli.status().active == 0, SOON_S, "the front to give it up")
        finally:
            server.resume()
        assert any(line.startswith('data: {"error":{"message":') for line in lines)
    assert api.post("/v1/completions", prompt="once", max_tokens=1)["choices"]

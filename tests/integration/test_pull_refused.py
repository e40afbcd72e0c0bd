"""`dllama-zmq pull` says in one sentence why it cannot: no network, no right to the model, wrong use."""

from __future__ import annotations

import time

import pytest
from command_line import finish
from hub_server import TOKEN, Hub, Repo
from puller import BIG, GGUF, TAKES_S, Puller, read_lines


def test_a_hub_that_cannot_be_reached_is_named_with_what_to_do(puller: Puller) -> None:
    puller.hub.stop()
    sentence = puller.run("org/m").error()
    assert sentence.startswith(
        f"{puller.hub.url} cannot be reached ([Errno 111] Connection refused); check the network"
    )
    assert all(word in sentence for word in ("try again", "HF_ENDPOINT", "HF_HUB_OFFLINE=1"))


def test_a_name_without_an_address_is_an_error_of_the_network(puller: Puller) -> None:
    sentence = puller.run("org/m", HF_ENDPOINT="https://hub.invalid").error()
    assert sentence.startswith("https://hub.invalid cannot be reached (")


def test_a_proxy_that_does_not_answer_is_named(puller: Puller) -> None:
    sentence = puller.run("org/m", HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9").error()
    assert "check the network and the proxy of HTTP_PROXY" in sentence


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"HF_ENDPOINT": "hub.example"}, "hub.example cannot be used"),
        ({"HTTPS_PROXY": "nothing://x", "https_proxy": "nothing://x"}, "the proxy cannot be used"),
        ({"HF_HUB_ETAG_TIMEOUT": "soon"}, "an HF_... variable must be a number"),
        ({"HF_TOKEN": "hf_sécret"}, "the token has a character that no token has"),
    ],
    ids=["endpoint", "proxy", "number", "token"],
)
def test_a_variable_that_cannot_be_used_is_named(puller: Puller, env: dict[str, str], says: str) -> None:
    result = puller.run("org/m", **env)
    assert result.error(2).startswith(says)
    assert "sécret" not in result.err


def test_a_hub_that_says_nothing_is_waited_for_aloud_and_not_for_long(puller: Puller, hub: Hub) -> None:
    hub.faults.hold_all = True
    with puller.started("org/m", HF_HUB_ETAG_TIMEOUT="4") as process:
        assert hub.faults.held.wait(TAKES_S)
        (line,) = read_lines(process, 1)
        ended = finish(process, TAKES_S, time.monotonic())
    assert line.startswith("looking for org/m (")
    assert ended.error().startswith(f"{hub.url} does not answer in time")


def test_a_transfer_is_reported_without_a_terminal(puller: Puller, hub: Hub) -> None:
    hub.faults.hold_after = 1_000_000
    with puller.started("org/m") as process:
        assert hub.faults.held.wait(TAKES_S)
        lines = read_lines(process, 4)
        assert lines[-1].startswith(f"{GGUF}: 1.0 of 3.0 MB, ")


def test_a_transfer_that_always_ends_early_ends_in_one_sentence(puller: Puller, hub: Hub) -> None:
    hub.faults.cut_after = [100] * 50
    result = puller.run("org/m")
    assert result.error().startswith(f"127.0.0.1 (where {hub.url} sends downloads) ") or hub.url in result.error()
    assert len(hub.fetched()) == 3


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (500, "failed (HTTP 500); try again later"),
        (503, "failed (HTTP 503); try again later"),
        (429, "has had too many requests from here"),
        (200, "does not answer like a hub"),
        (418, "refuses org/m (HTTP 418"),
    ],
)
def test_an_error_of_the_hub_is_one_sentence(puller: Puller, hub: Hub, status: int, says: str) -> None:
    hub.faults.status = {"/api/models/": [status]}
    assert says in puller.run("org/m").error()


@pytest.mark.parametrize("token", ["", "hf_SomebodyElse"])
def test_a_gated_model_says_where_to_accept_its_licence(puller: Puller, hub: Hub, token: str) -> None:
    hub.repos["org/m"].gated = True
    result = puller.run("org/m", HF_TOKEN=token)
    says = f"accept its licence at {hub.url}/org/m and set HF_TOKEN (or run `hf auth login`)"
    assert says in result.error()
    assert "SomebodyElse" not in result.err
    assert puller.files() == []


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_the_token_opens_what_it_may_and_goes_to_the_hub_alone(puller: Puller, hub: Hub, kind: str) -> None:
    setattr(hub.repos["org/m"], kind, True)
    env = puller.environment(HF_TOKEN=TOKEN, DLLAMA_ZMQ_DEBUG="1", HF_DEBUG="1")
    result = puller.cli.run("--verbose", "pull", "org/m", wait_s=TAKES_S, **env)
    assert result.code == 0, result.said
    assert TOKEN not in result.out + result.err
    with_token = {request.path for request in hub.requests if "authorization" in request.headers}
    assert with_token
    assert not any("signature" in path for path in with_token)


def test_a_token_that_was_signed_in_with_is_used(puller: Puller, hub: Hub) -> None:
    hub.repos["org/m"].private = True
    puller.cache.parent.mkdir()
    (puller.cache.parent / "token").write_text(TOKEN)
    assert puller.path("org/m").read_bytes() == BIG


@pytest.mark.parametrize("private", [False, True])
def test_a_model_that_is_not_there_for_you_says_so(puller: Puller, hub: Hub, private: bool) -> None:
    hub.repos["org/x" if private else "org/y"] = Repo({GGUF: b""}, private=True)
    sentence = puller.run("org/x").error(2)
    assert sentence.startswith(f"there is no public model {hub.url}/org/x; check its name")
    assert "HF_TOKEN (or run `hf auth login`)" in sentence


def test_a_token_that_does_not_help_is_said(puller: Puller) -> None:
    assert "does not accept your token for org/x" in puller.run("org/x", HF_TOKEN="hf_SomebodyElse").error()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["org/m", "--revision", "dev"], "org/m has no branch, tag or commit 'dev'"),
        (["org/m:Q5_K_M"], "has no 'Q5_K_M'; the nearest are Q4_K_M"),
        (["org/m:*"], "has 2 models like '*': Q4_K_M, Q8_0; choose one, as org/m:Q4_K_M"),
        (["../m"], "is not the name of a hub"),
        (["org/m", "--to", "x", "--offline"], "--to downloads from the hub, which is not asked offline"),
    ],
    ids=["revision", "file", "several", "name", "offline"],
)
def test_wrong_use_is_refused(puller: Puller, words: list[str], says: str) -> None:
    assert says in puller.run(*words).error(2)

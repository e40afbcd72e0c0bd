"""A token admits one new key, once, while it is good; its holder may do nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import zmq
from contexts import a_context
from hostile.knocking import SOON_S, a_link, answering, knocking, next_event
from integration.nodes import Context
from secured import Secured

from dllama_zmq.bus import sockets
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.known_root import TO_HOLDER, enrol
from dllama_zmq.bus.messages import Enroll
from dllama_zmq.bus.security import Peer
from dllama_zmq.errors import TokenError
from dllama_zmq.trust import KeyPair, Ring, Role, Token


@pytest.fixture
def context() -> Iterator[Context]:
    with a_context() as context:
        yield context


def test_a_token_admits_one_new_key_once(context: Context) -> None:
    secured, new, other = Secured(), KeyPair.new(), KeyPair.new()
    with answering(context, secured) as address:
        assert enrol(context, address, secured.holder(), new.public) == ""
        assert secured.ring.admits(new.public, Role.worker)
        with pytest.raises(TokenError, match="has been used or has expired"):
            enrol(context, address, secured.holder(), other.public)
        assert not secured.ring.admits(other.public, Role.worker)
        with knocking(context, zmq.DEALER, address, Peer(new, secured.root.public).apply) as (_, events):
            assert next_event(events) == zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_a_holder_that_is_not_answered_asks_again(context: Context) -> None:
    """A root drops what it reads before its guard has seen the connection."""
    secured, new = Secured(), KeyPair.new()
    with answering(context, secured, n_dropped=1) as address:
        assert enrol(context, address, secured.holder(), new.public, wait_s=30.0) == ""
    assert secured.ring.admits(new.public, Role.worker)


def test_two_holders_of_one_token_do_not_both_get_in(context: Context) -> None:
    """Both have connected while it was good."""
    secured, keys = Secured(), [KeyPair.new(), KeyPair.new()]
    with (
        answering(context, secured) as address,
        closing(sockets.Connection(context, address, secured.holder())) as first,
        closing(sockets.Connection(context, address, secured.holder())) as second,
    ):
        answers = []
        assert first.up(SOON_S)
        assert second.up(SOON_S)
        for connection, pair in zip((first, second), keys, strict=True):
            frames, until = None, time.monotonic() + SOON_S
            while frames is None:  # the root drops what it reads before its guard has seen the connection
                assert time.monotonic() < until, "no answer"
                connection.socket.send_multipart(encode(Enroll(pair.public)))
                frames = sockets.receive(connection.socket, time.monotonic() + 1.0)
            answers.append(type(decode(frames, TO_HOLDER)[0]).__name__)
    assert answers == ["Enrolled", "Refuse"]
    assert [bool(secured.ring.admits(pair.public, Role.worker)) for pair in keys] == [True, False]


def test_an_expired_token_opens_nothing(context: Context) -> None:
    secured, token = Secured(), KeyPair.new()
    secured.ring = Ring([], [Token.lasting(Role.worker, "", token.public, -1.0)], ["worker1"])
    with answering(context, secured) as address, pytest.raises(TokenError, match="has been used or has expired"):
        enrol(context, address, Peer(token, secured.root.public), KeyPair.new().public)


def test_the_key_of_a_token_hears_no_steps(context: Context) -> None:
    secured = Secured()
    with (
        a_link(context, secured) as (_, at),
        knocking(context, zmq.SUB, at["steps"], secured.holder().apply) as (_, events),
    ):
        assert next_event(events) == zmq.EVENT_HANDSHAKE_FAILED_AUTH


def test_a_text_that_is_no_public_key_is_not_enrolled(context: Context) -> None:
    secured = Secured()
    with answering(context, secured) as address:
        for nonsense in ("", "x" * 40 + "\n", "x" * 64, "\xfc" * 40):
            with pytest.raises(TokenError):
                enrol(context, address, secured.holder(), nonsense)
        assert enrol(context, address, secured.holder(), KeyPair.new().public) == ""  # the token is not used up

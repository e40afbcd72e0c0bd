"""Which endpoints have CURVE, and what a failed handshake means in words."""

from __future__ import annotations

import pytest
import zmq

from dllama_zmq.bus.security import Peer, Server, why_failed
from dllama_zmq.trust import KeyPair, Ring, Role


@pytest.mark.parametrize(
    ("endpoint", "secured"),
    [
        ("tcp://192.168.1.10:5570", True),
        ("tcp://0.0.0.0:5570", True),
        ("tcp://*:5570", True),
        ("tcp://[::]:5570", True),
        ("tcp://[fd77::1]:5570", True),
        ("tcp://pi1:5570", True),
        ("tcp://127.0.0.1:5570", False),
        ("tcp://127.9.9.9:5570", False),
        ("tcp://[::1]:5570", False),
        ("tcp://localhost:5570", False),
        ("ipc:///tmp/replies", False),
        ("inproc://replies", False),
    ],
)
def test_endpoints_that_a_network_can_reach_are_secured_and_no_others(endpoint: str, secured: bool) -> None:
    assert Server(KeyPair.new(), Ring(), Role.worker).secures(endpoint) is secured


@pytest.mark.parametrize(
    ("event", "value", "has_keys", "words"),
    [
        (zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400, True, "does not admit the key of this computer"),
        (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, False, "wants an encrypted"),
        (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH, True, "is not encrypted"),
        (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC, True, "its key is not "),
        (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, 104, True, "its key is not "),
        (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, 104, False, ""),
    ],
)
def test_a_failed_handshake_is_explained_as_far_as_it_is_known(
    event: int, value: int, has_keys: bool, words: str
) -> None:
    peer = Peer(KeyPair.new(), KeyPair.new().public) if has_keys else None
    sentence = why_failed(event, value, "tcp://pi1:5570", peer)
    assert words in sentence
    assert ("tcp://pi1:5570" in sentence) is bool(words)
    assert peer is None or peer.keys.secret not in sentence

"""Who may connect to a cluster: key pairs, the ring of admitted keys, tokens, and the roots known here."""

from dllama_zmq.trust.keys import KeyPair, Role, check_public, own_key
from dllama_zmq.trust.known import Known, find, remember
from dllama_zmq.trust.learned import Entry
from dllama_zmq.trust.ring import Ring
from dllama_zmq.trust.tokens import Invitation, Token

__all__ = [
    "Entry",
    "Invitation",
    "KeyPair",
    "Known",
    "Ring",
    "Role",
    "Token",
    "check_public",
    "find",
    "own_key",
    "remember",
]

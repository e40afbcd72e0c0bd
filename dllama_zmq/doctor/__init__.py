"""What may be wrong on this computer and in its cluster, each with what to do. `checks_of` says what is looked at."""

from dllama_zmq.doctor.findings import Check, Finding, Level, examined
from dllama_zmq.doctor.what import Subject, checks_of

__all__ = ["Check", "Finding", "Level", "Subject", "checks_of", "examined"]

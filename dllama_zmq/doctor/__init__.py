"""Checks of this computer and its cluster: findings, each with its cure. `checks_of` lists the checks."""

from dllama_zmq.doctor.findings import Check, Finding, Level, examined
from dllama_zmq.doctor.what import Subject, checks_of

__all__ = ["Check", "Finding", "Level", "Subject", "checks_of", "examined"]

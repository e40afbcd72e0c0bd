"""Constrained decoding: which tokens may come next so that the answer becomes a sentence of a grammar. See GRAMMARS.md.

Knows the bytes and ids of a vocabulary; knows no model, node or client.
"""

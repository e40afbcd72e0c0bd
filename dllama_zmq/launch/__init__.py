"""Bring a cluster's processes up and down. Knows processes and places; knows nothing of weights or tokens."""

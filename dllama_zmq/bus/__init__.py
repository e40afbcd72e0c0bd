"""The ZeroMQ bus between the nodes; PROTOCOL.md says what is on the wire. Knows activations, not models."""

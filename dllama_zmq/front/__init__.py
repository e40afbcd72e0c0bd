"""The front: clients, text and queues in a process of its own, so that no client can delay a step."""

"""The front: clients, text and queues in a process of their own, so that no client can hold up a step."""

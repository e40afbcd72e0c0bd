"""The API server: HTTP for the front of one cluster, in a process of its own. API.md says what it answers."""

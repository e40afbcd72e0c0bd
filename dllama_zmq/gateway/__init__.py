"""The API server: HTTP for the clients of one cluster, in a process of its own. See API.md."""

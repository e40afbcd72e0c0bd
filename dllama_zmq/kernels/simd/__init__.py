"""The fast back end: numba makes machine code for this CPU once, `library.py` keeps it, ctypes calls it."""

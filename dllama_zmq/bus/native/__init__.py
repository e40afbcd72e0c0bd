"""The fast path of an exchange of partial sums: one compiled call that uses libzmq's C functions.

`exchange.py` is for the bus. `kernel.py` is numba code, which only the processes that compile import. No other module
of the bus knows compiled code, and no kernel knows a socket.
"""

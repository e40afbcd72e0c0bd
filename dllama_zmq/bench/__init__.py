"""`dllama-zmq bench`: the speed of a model on this computer, and the limits of the machine to compare it with.

Knows nodes, files and the host; knows no terminal and no flags.
"""

"""`dllama-zmq bench` and `plan`: the speed of a model on this computer beside the machine's limits, and its prediction.

Knows nodes, files and the host; knows no terminal and no flags.
"""

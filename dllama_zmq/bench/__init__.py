"""`dllama-zmq bench`: how fast a model runs here, over how many nodes, beside what this machine could do.

Knows nodes, files and the host; knows no terminal and no flags.
"""

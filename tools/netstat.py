"""`dllama-zmq netstat`, started from a clone.

python tools/netstat.py                                             the cluster of ./cluster.yaml
python tools/netstat.py --connect tcp://192.168.1.10:5572 --watch   a cluster elsewhere, every 2 seconds
python tools/netstat.py --predict llama3-8b --nodes 8 --sync q80    no cluster
"""

import sys

from dllama_zmq.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["netstat"]
    main()

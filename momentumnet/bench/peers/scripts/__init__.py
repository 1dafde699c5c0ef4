"""Scripts that run one peer each, in a process and an environment of its own.

`worker` measures; a file ``run_PEER.py`` beside it builds the peer's networks. None of them imports this package: in
the environment of the original package, ``momentumnet`` is another one.
"""

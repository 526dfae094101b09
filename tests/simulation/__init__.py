"""A client and a server of ours over a simulated network, on a virtual clock, with a model that knows the truth.

In each run an end sends and receives messages, or it writes and reads bytes, with `as_byte_stream`, or one of each.

Everything random comes from one seed, so a run that fails is repeated by its seed: `python -m simulation --help`.

    world.py      what happens: the plan, the actors and their calls, the end
    oracle.py     what must be true: during a run, when nothing moves, and at the end
    inbox.py      a model of what waits to be received, and of what `overflow` drops
    wire.py       a strict decoder of its own, for what an endpoint has written
    link.py       the network: short writes, delays, splits, resets, ends, silence; a Transport over it
    streams.py    a ByteStream over it, for `connect(stream=...)` and `accept(stream)`
    sockets.py    a socket over it, and the event loops' readiness, for SocketTransport
    threads.py    worker threads, for what takes long to compress or to inflate
    harness.py    the same seed, the same run; many seeds in one event loop
"""

"""Load and soak: one server process with thousands of connections, and the processes of its clients.

    PYTHONPATH=tests python -m soak --loop trio --connections 10000 --seconds 60

Theory of operation. A conductor (`__main__.py`) starts a server process (`server.py`) and client processes
(`clients.py`) and tells them what to do, over connections that have nothing to do with the library (`process.py`). It
runs in rounds, each with a `Server` of its own:

- idle rounds: so many connections, each of which has echoed a message. They give the memory and the times of opening
  and draining, and warm everything up;
- rounds of conversations, a new one whenever one has ended. Messages are echoed, asked for in floods that are not read
  for a while, sent to all by the server. Connections end in every way, by both sides; others die in their handshake.

Each end keeps an account of each conversation (`accounts.py`): every message is numbered and has a checksum. When a
round is over the conductor compares the accounts of both ends (`checks.py`), and each process says how much memory,
how many descriptors and tasks it has, and what was logged.
"""

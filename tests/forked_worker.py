"""Give the pipes of this process to `tests/template.py`, and wait for the worker on them to end."""

import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect("\0" + sys.argv[1])
    socket.send_fds(connection, [b"w"], [0, 1, 2])
    # The worker sends its exit status, and holds the other end as long as it lives.
    status = connection.recv(1)
sys.exit(status[0] if status else 1)

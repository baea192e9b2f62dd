"""An HTTP server that answers with any bytes, also without end."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import sleep

HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def server(head: bytes, piece: bytes = b"", pause_s: float = 0) -> Iterator[tuple[str, list[bytes]]]:
    """Answer with `head` and then `piece` again and again. Yields the URL and the requests."""
    asked: list[bytes] = []
    ended = threading.Event()

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    asked.append(connection.recv(65_536))
                    connection.sendall(head)
                    while piece and not ended.is_set():
                        connection.sendall(piece)
                        sleep(pause_s)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", asked
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()

"""A TCP proxy before the database that knows where a conversation stands, and can stop it just there."""

import contextlib
import socket
import threading

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


class Stop:
    """Where to stop: once every one of `marks` was seen from the client, in this order.

    `how`: `before` the server sees the message with the last mark, with `half` of it there, or when the server has
    answered it and the client has not heard (`answer`). The first two go on when `go` is set.
    """

    def __init__(self, how: str, *marks: bytes) -> None:
        self.how, self.marks = how, list(marks)
        self.reached, self.go = threading.Event(), threading.Event()

    def seen(self, data: bytes) -> bool:
        """Whether `data` holds the last mark that was still waited for."""
        place = 0
        while self.marks and (found := data.find(self.marks[0], place)) >= 0:
            place = found + len(self.marks.pop(0))
            if not self.marks:
                return True
        return False


class Proxy:
    """Listens on `port` for as long as the process lives; `target` may change, as a server's port does at a restart."""

    def __init__(self, target: int) -> None:
        self.target, self.stop, self._ends = target, Stop("never"), set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends every connection that stands, on both sides; what was held never arrives."""
        old, self.stop = self.stop, Stop("never")
        for end in list(self._ends):
            self._close(end)
        old.go.set()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._ends.add(end)
            silent = threading.Event()
            threading.Thread(target=self._requests, args=(client, server, silent), daemon=True).start()
            threading.Thread(target=self._answers, args=(server, client, silent), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, silent: threading.Event) -> None:
        stop = self.stop
        try:
            while data := client.recv(1 << 20):
                if stop.seen(data):
                    if stop.how == "answer":
                        silent.set()
                    else:
                        sent = len(data) // 2 if stop.how == "half" else 0
                        server.sendall(data[:sent])
                        stop.reached.set()
                        stop.go.wait()
                        data = data[sent:]
                server.sendall(data)
        except OSError:
            pass
        self._close(client)
        self._close(server)

    def _answers(self, server: socket.socket, client: socket.socket, silent: threading.Event) -> None:
        stop = self.stop
        try:
            while data := server.recv(1 << 20):
                if silent.is_set():
                    stop.reached.set()
                else:
                    client.sendall(data)
        except OSError:
            pass
        self._close(server)
        self._close(client)

    def _close(self, end: socket.socket) -> None:
        self._ends.discard(end)
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()

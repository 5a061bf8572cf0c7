"""A way to a server that breaks."""

import contextlib
import socket
import threading


@contextlib.contextmanager
def fragile(address, breaks):
    """The dashboard by a way that drops the first `breaks` logs after 4000 bytes; it, and the logs' connections."""
    tails: list[int] = []

    def pipe(source, sink, limit):
        with contextlib.suppress(OSError):
            while limit > 0 and (data := source.recv(1000)):
                sink.sendall(data)
                limit -= len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(door):
        while True:
            try:
                near = door.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
            far.sendall(request := near.recv(65536))
            if tail := b"/logs/tail" in request:
                tails.append(1)
            limit = 4000 if tail and len(tails) <= breaks else 10**9
            threading.Thread(target=pipe, args=(near, far, 10**9), daemon=True).start()
            threading.Thread(target=pipe, args=(far, near, limit), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=serve, args=(door,), daemon=True).start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}", tails

"""An S3 store on this machine that throttles, fails and goes away on demand: moto's server behind a proxy that makes the faults.

::

    with faulty_store() as store:
        address = store.address("photos", "pets")  # s3://photos/pets; the bucket is created
        store.put("photos", "pets/a.parquet", b"...")  # past the faults
        store.throttle(0.5); store.fail_every(10); store.go_away(20)
        ...
        store.count("GET", "a.parquet")  # requests that were answered in full
"""

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote
from xml.etree import ElementTree

MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""Runs in a process of its own, because moto warns, and a test makes errors of warnings. The process ends with its parent."""
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
"""Moto refuses requests without a signature, and does not look at it."""
CHUNK = 2**16
PASSED_ON = ("transfer-encoding", "connection", "server", "date")  # what the proxy writes itself


@contextmanager
def faulty_store() -> Iterator["FaultyStore"]:
    """A store for as long as the block runs. The environment leads pyarrow and boto3 to it, in this process and in those that it
    starts; processes that run already, such as Ray's, need `full_address`.
    """
    command = [sys.executable, "-W", "ignore", "-c", MOTO]
    moto = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert moto.stdin
    assert moto.stdout
    try:
        store = FaultyStore(int(moto.stdout.readline()))
        before = {name: os.environ.get(name) for name in store.environment}
        os.environ.update(store.environment)
        try:
            yield store
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            store.close()
    finally:
        moto.kill()
        moto.wait()
        moto.stdin.close()
        moto.stdout.close()


class FaultyStore:
    """The proxy. All switches work at once and together, and may be set while requests run; `heal` ends all faults."""

    def __init__(self, moto_port: int) -> None:
        self._moto_port = moto_port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._fraction, self._owed = 0.0, 0.0
        self._every, self._since_failure = 0, 0
        self._gone_until = 0.0
        self._denied = False
        self._bytes_per_s = 0.0
        self.served: list[tuple[str, str]] = []
        """Method and path (with the query, decoded) of each request that was answered in full."""
        self.num_throttled = 0
        self.num_failed = 0
        """Requests that `fail_every` failed."""
        self.num_refused = 0
        """Connections and requests that were cut because the store is gone."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.store = self
        self.port: int = self._server.server_address[1]
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        """What leads a process to this store."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    # Addresses, and content past the faults

    def address(self, bucket: str, folder: str = "") -> str:
        """`s3://bucket/folder`, for processes with the store's environment. Creates the bucket."""
        self._direct("PUT", f"/{bucket}")
        return f"s3://{bucket}/{folder}".rstrip("/")

    def full_address(self, bucket: str, folder: str = "") -> str:
        """An address that names the endpoint, and so needs no environment: the store asks for no password. Creates the bucket."""
        return f"{self.address(bucket, folder)}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Writes an object, past the faults. Creates the bucket."""
        self.address(bucket)
        self._direct("PUT", f"/{bucket}/{quote(key)}", content)

    def read(self, bucket: str, key: str) -> bytes:
        """An object's content, past the faults."""
        return self._direct("GET", f"/{bucket}/{quote(key)}")

    def delete(self, bucket: str, key: str) -> None:
        """Deletes an object, past the faults."""
        self._direct("DELETE", f"/{bucket}/{quote(key)}")

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of at most 1000 objects that begin with `prefix`, past the faults."""
        listing = ElementTree.fromstring(self._direct("GET", f"/{bucket}?list-type=2&prefix={quote(prefix)}"))
        return [str(entry.text) for entry in listing.iter() if entry.tag.endswith("}Key")]

    def count(self, method: str, text: str = "") -> int:
        """How many requests with this method, and `text` in their path, were answered in full."""
        with self._lock:
            return sum(method == of and text in path for of, path in self.served)

    # The faults

    def throttle(self, fraction: float) -> None:
        """Answers 503 SlowDown to this share of the requests; 0 ends it. Every client asks at least so often in vain."""
        with self._lock:
            self._fraction, self._owed = fraction, 0.0

    def fail_every(self, n: int) -> None:
        """Fails every n-th request; 0 ends it.

        Failures take turns: an answer 500 to a request that the store has not seen; and a connection that is cut, after half of
        the answer's body, or if that is empty, without any answer, although the store has done what was asked for.
        """
        with self._lock:
            self._every, self._since_failure = n, 0

    def go_away(self, seconds: float) -> None:
        """Cuts all connections, and new ones too, for some seconds from now. Returns at once."""
        with self._lock:
            self._gone_until = time.monotonic() + seconds
        self._cut_all()

    def deny(self, denied: bool = True) -> None:
        """Answers 403 AccessDenied to every request."""
        with self._lock:
            self._denied = denied

    def limit(self, bytes_per_s: float) -> None:
        """Sends the bodies of answers no faster than this, each; 0 ends it."""
        with self._lock:
            self._bytes_per_s = bytes_per_s

    def heal(self) -> None:
        """Ends all faults."""
        with self._lock:
            self._fraction, self._every, self._gone_until, self._denied, self._bytes_per_s = 0.0, 0, 0.0, False, 0.0

    # Below: for this file

    def close(self) -> None:
        self.go_away(3600)
        self._server.shutdown()
        self._thread.join()
        self._cut_all()
        self._server.server_close()

    def _direct(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._moto_port, timeout=60)
        try:
            connection.request(method, path, body, SIGNED)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        assert answer.status < 300, content
        return content

    def _cut_all(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def is_gone(self) -> bool:
        """Whether the store is gone; counts the connection or request that asks."""
        with self._lock:
            gone = time.monotonic() < self._gone_until
            self.num_refused += gone
            return gone

    def fault(self) -> str:
        """What becomes of the next request: `gone`, `denied`, `throttled`, `error`, `cut`, or empty."""
        if self.is_gone():
            return "gone"
        with self._lock:
            if self._denied:
                return "denied"
            self._owed += self._fraction
            if self._owed >= 1:
                self._owed -= 1
                self.num_throttled += 1
                return "throttled"
            self._since_failure += 1
            if self._every and self._since_failure >= self._every:
                self._since_failure = 0
                self.num_failed += 1
                return "error" if self.num_failed % 2 else "cut"
            return ""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing the server waits for its threads
    request_queue_size = 128
    store: FaultyStore

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients go away, and connections are cut on purpose."""


ERRORS = {
    "denied": (403, "AccessDenied", "Access Denied"),
    "throttled": (503, "SlowDown", "Please reduce your request rate."),
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 600
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.store._lock:
            self.server.store._open.add(self.connection)

    def finish(self) -> None:
        with self.server.store._lock:
            self.server.store._open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def handle_one_request(self) -> None:
        if self.server.store.is_gone():
            self.cut()
            return
        super().handle_one_request()

    def answer(self) -> None:
        """One request, from its first byte to its fault or its end."""
        body, fault = self.body(), self.server.store.fault()
        if fault == "gone":
            self.cut()
        elif fault in ERRORS:
            self.refuse(*ERRORS[fault])
        else:
            self.forward(body, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailing headers
            pass
        return b"".join(chunks)

    def refuse(self, status: int, code: str, message: str) -> None:
        content = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def forward(self, body: bytes, cut: bool) -> None:
        store = self.server.store
        connection = http.client.HTTPConnection("127.0.0.1", store._moto_port, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in PASSED_ON}
            headers |= {} if "Authorization" in self.headers else SIGNED
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            length = int(answer.getheader("Content-Length") or 0)
            empty = self.command == "HEAD" or not length
            if cut and empty:
                self.cut()
                return
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in PASSED_ON:
                    self.send_header(name, value)
            if answer.getheader("Content-Length") is None:
                self.send_header("Content-Length", "0")
            self.end_headers()
            if not empty and not self.send_body(answer, length // 2 if cut else length):
                return
            if cut:
                self.cut()
                return
        finally:
            connection.close()
        with store._lock:
            store.served.append((self.command, unquote(self.path)))

    def send_body(self, answer: http.client.HTTPResponse, length: int) -> bool:
        """Whether `length` bytes were sent: the store may go away meanwhile."""
        while length:
            store = self.server.store
            chunk = answer.read(min(length, CHUNK if not store._bytes_per_s else 2**13))
            if store.is_gone() or not chunk:
                self.cut()
                return False
            self.wfile.write(chunk)
            length -= len(chunk)
            if store._bytes_per_s:
                time.sleep(len(chunk) / store._bytes_per_s)
        return True

    def cut(self) -> None:
        """Ends the connection with a reset."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)

"""TLS servers on loopback: certificates of an own authority, HTTP/1.1 and HTTP/2."""

import asyncio
import contextlib
import datetime
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """Signs certificates; `ca_file` is what a client must trust."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        made = self._builder(self._name, self._key, NOW + datetime.timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def context(self, host: str, *, protocols: list[str], expired: bool = False) -> ssl.SSLContext:
        """For a server with a certificate of this name."""
        key = ec.generate_private_key(ec.SECP256R1())
        ends = NOW + datetime.timedelta(days=-1 if expired else 1)
        made = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]), key, ends)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        path = self._folder / f"{host}-{expired}.pem"
        path.write_bytes(
            made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.set_alpn_protocols(protocols)
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, ends: datetime.datetime
    ) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        return made.not_valid_before(NOW - datetime.timedelta(days=9)).not_valid_after(ends)


class Http2(asyncio.Protocol):
    """Answers every request with the same picture, a tenth of a second later; counts connections."""

    def __init__(self, body: bytes, connections: list[int]) -> None:
        self.body, self.connections = body, connections
        self.waiting: dict[int, bytes] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.connections.append(0)
        self.transport = transport
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.http.initiate_connection()
        transport.write(self.http.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.connections[-1] += 1
                asyncio.get_running_loop().call_later(0.1, self.answer, event.stream_id, dict(event.headers))
            elif isinstance(event, h2.events.WindowUpdated):
                self.flow()
            elif isinstance(event, h2.events.StreamReset):
                self.waiting.pop(event.stream_id, None)
        self.transport.write(self.http.data_to_send())

    def answer(self, stream: int, request: dict[bytes, bytes]) -> None:
        if self.transport.is_closing():
            return
        found = not request[b":path"].endswith((b".txt", b".json"))
        self.http.send_headers(stream, [(":status", "200" if found else "404"), ("x-path", request[b":path"])])
        self.waiting[stream] = self.body if found else b""
        self.flow()
        self.transport.write(self.http.data_to_send())

    def flow(self) -> None:
        for stream, body in list(self.waiting.items()):
            while body and (size := min(self.http.local_flow_control_window(stream), 16384, len(body))):
                self.http.send_data(stream, body[:size])
                body = body[size:]
            self.waiting[stream] = body
            if not body:
                self.http.end_stream(stream)
                del self.waiting[stream]


class Http1(asyncio.Protocol):
    """Answers every request with the same bytes; resets connections before the handshake when there are none."""

    def __init__(self, response: bytes) -> None:
        self.response = response

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        if not self.response:
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.response)


class Either(asyncio.Protocol):
    """HTTP/2 or HTTP/1.1, as agreed in the handshake; counts requests of each."""

    def __init__(self, body: bytes, asked: dict[str, int]) -> None:
        self.body, self.asked = body, asked

    def connection_made(self, transport: asyncio.Transport) -> None:
        agreed = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.body)
        self.agreed = agreed
        self.inner = Http2(self.body, []) if agreed == "h2" else Http1(head + self.body)
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.agreed != "h2":
            self.asked["http/1.1"] = self.asked.get("http/1.1", 0) + data.count(b"GET ")
        self.inner.data_received(data)


@contextlib.contextmanager
def serving(protocol: object, context: ssl.SSLContext | None) -> Iterator[str]:
    """A server in a thread; yields address:port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(protocol, "127.0.0.1", 0, ssl=context))  # type: ignore[arg-type]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:

        async def close() -> None:
            server.close()
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

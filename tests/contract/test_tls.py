"""S3 behind TLS: a private authority is believed when AWS_CA_BUNDLE names it, and nobody else is."""

from __future__ import annotations

import asyncio
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from tdm_r1.artifacts.manifest import sha256_of
from tdm_r1.artifacts.s3 import PART_BYTES
from tdm_r1.artifacts.store import Store, open_store
from tdm_r1.errors import ConfigError
from tests.s3 import Server

Opener = Callable[..., tuple[Store, str]]


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Hand on what comes until it ends."""
    with suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    sink.close()


@contextmanager
def behind_tls(server: Server, certificate: trustme.LeafCert) -> Iterator[str]:
    """Terminate TLS on a free port of the loopback; the bytes inside go to the real server as they are."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    target = urlsplit(server.endpoint)
    ready: queue.Queue[tuple[int, Callable[[], object]]] = queue.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    async def listen() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        ready.put((listener.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(stop.set)))
        await stop.wait()
        listener.close()

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    port, stop = ready.get(timeout=60)
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        stop()
        thread.join()


@pytest.fixture
def opener(s3_server: Server, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Open a store at a server whose certificate names `host`, with or without its authority in AWS_CA_BUNDLE."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with ExitStack() as stack:

        def open_(host: str, *, trusted: bool) -> tuple[Store, str]:
            endpoint = stack.enter_context(behind_tls(s3_server, authority.issue_cert(host)))
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            if trusted:
                monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "authority.pem"))
            else:
                monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
            return open_store(s3_root), endpoint

        yield open_


def test_a_certificate_of_a_named_private_authority_is_trusted(opener: Opener, tmp_path: Path) -> None:
    store, _ = opener("127.0.0.1", trusted=True)
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * (PART_BYTES // 256 + 1))
    assert store.write_bytes_if_absent("a/manifest.json", b"first")
    assert not store.write_bytes_if_absent("a/manifest.json", b"second")
    assert store.put_file_if_absent(big, "a/big")
    store.fetch("a/big", tmp_path / "back")
    assert sha256_of(tmp_path / "back") == sha256_of(big)
    assert store.list("") == ["a/big", "a/manifest.json"]


@pytest.mark.parametrize(
    ("host", "trusted", "found", "hint"),
    [
        ("127.0.0.1", False, "is not trusted", "AWS_CA_BUNDLE"),
        ("elsewhere.example", True, "is that of another host", "AWS_ENDPOINT_URL"),
    ],
)
def test_an_unknown_authority_and_another_host_are_refused_and_not_called_temporary(
    host: str, trusted: bool, found: str, hint: str, opener: Opener
) -> None:
    store, endpoint = opener(host, trusted=trusted)
    with pytest.raises(ConfigError, match=f"the certificate of {endpoint} {found}") as caught:
        store.exists("run.json")
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2

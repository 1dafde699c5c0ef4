from __future__ import annotations

import socket
import threading
import urllib.request

import pytest

from momentumnet.bench.data import downloads


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", dict)


def test_a_listening_host_is_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert downloads.reachable(f"https://127.0.0.1:{server.getsockname()[1]}/file.pth")


def test_a_closed_port_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not downloads.reachable(f"https://127.0.0.1:{port}/file.pth")


def test_a_name_lookup_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def hang(*_: object, **__: object) -> None:
        end.wait()
        raise OSError("name not known")

    monkeypatch.setattr(downloads, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(socket, "create_connection", hang)
    assert not downloads.reachable("https://example.org/file.pth")
    end.set()


def test_behind_a_proxy_the_download_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked directly"))
    assert downloads.reachable("https://example.org/file.pth")


def test_stall_timeout_is_put_back() -> None:
    before = socket.getdefaulttimeout()
    with downloads.stall_timeout():
        assert socket.getdefaulttimeout() == downloads.STALL_SECONDS
    assert socket.getdefaulttimeout() == before

"""Downloads that give up soon on a machine without network, and torchvision's data sets among them."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torchvision

ROOT = Path("data")
PROBE_SECONDS = 8.0
STALL_SECONDS = 20.0


def reachable(url: str) -> bool:
    """Whether the host of ``url`` accepts a connection within a few seconds.

    Behind a proxy the question cannot be asked directly; the answer is then yes, and the download itself finds out.
    """
    if urllib.request.getproxies():
        return True
    address = urlparse(url)
    answer: list[bool] = []

    def probe() -> None:
        try:
            socket.create_connection(
                (address.hostname, address.port or (80 if address.scheme == "http" else 443)), timeout=PROBE_SECONDS
            ).close()
        except OSError:
            return
        answer.append(True)

    # In a thread because looking up the name has no timeout of its own and can take minutes.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answer)


@contextmanager
def stall_timeout() -> Iterator[None]:
    """Lets downloads in this context fail when nothing arrives for ``STALL_SECONDS``."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch(dataset: str, host: str, **part: Any) -> object | None:
    """Has a part of a data set lie under ``ROOT``.

    Args:
        dataset: Its class in `torchvision.datasets`.
        host: Where it is fetched from.
        part: What asks the class for the part, e.g. ``train=False``.

    Returns:
        Why it cannot be had; None where it is there.
    """
    build = getattr(torchvision.datasets, dataset)
    try:
        build(ROOT, **part)
        return None
    except RuntimeError:  # not there yet, or not complete
        pass
    if not reachable(host):
        return "no network"
    try:
        with stall_timeout():
            build(ROOT, download=True, **part)
    except (URLError, TimeoutError, ConnectionError, RuntimeError) as error:  # RuntimeError: a damaged file arrived
        return error
    return None

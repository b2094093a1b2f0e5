"""Ports for services that are run for a while."""

import secrets
import socket

import pytest

from demo.service import free_port


def test_a_port_can_be_bound_and_is_given_to_nobody_else() -> None:
    """Whoever asks for any has one that the system chose."""
    with socket.socket() as asked, socket.socket() as served:
        asked.bind(("127.0.0.1", 0))
        served.bind(("127.0.0.1", port := free_port()))
        assert 20_000 <= port < 32_000 < asked.getsockname()[1]


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port := free_port()))
        taken.listen()
        offsets = iter([port - 20_000, (port - 20_000 + 1) % 12_000])
        monkeypatch.setattr(secrets, "randbelow", lambda _: next(offsets))
        assert free_port() != port

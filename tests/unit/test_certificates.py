"""TLS of a local server: its files are checked at start, copied in private, and passed to HAProxy when they change."""

from __future__ import annotations

import socket
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from tests.integration.certificates import Authority
from tests.unit.test_own_house import CONFIGURATION

from enginehouse.cluster import haproxy_wrapper
from enginehouse.cluster.haproxy.certificates import Certificates
from enginehouse.contract.errors import ConfigError, NoBackend
from enginehouse.tools.cli import access


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_copies_are_private_and_named_in_the_options(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.vouch("server")
    folder = tmp_path / "own folder"
    folder.mkdir()
    assert Certificates(cert, key).put(folder) == f'ssl crt "{folder}/server.pem"'
    options = Certificates(cert, key, authority.path).put(folder)
    assert options == f'ssl crt "{folder}/server.pem" ca-file "{folder}/clients.pem" verify required'
    for copy in folder.iterdir():
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert (folder / "server.pem").read_text() == cert.read_text() + key.read_text()


def test_files_that_do_not_fit_are_refused_and_not_quoted(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.vouch("server")
    _, other = authority.vouch("other")
    text = tmp_path / "text"
    text.write_text("secret")
    locked = tmp_path / "locked"
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for files, told in (
        ((cert, other, None), "key values mismatch"),
        ((text, key, None), "no certificate chain"),
        ((cert, text, None), "no certificate chain"),
        ((cert, locked, None), "no certificate chain"),
        ((tmp_path / "none", key, None), "--tls-cert .*No such file"),
        ((cert, tmp_path / "none", None), "--tls-key .*No such file"),
        ((cert, key, text), "--tls-client-ca .* is no certificate"),
        ((cert, key, tmp_path / "none"), "--tls-client-ca .*No such file"),
    ):
        with pytest.raises(ConfigError, match=told) as caught:
            Certificates(*files)
        assert "secret" not in str(caught.value) and "BEGIN" not in str(caught.value)


def test_the_options_of_serve_are_for_a_local_server_and_go_together(authority: Authority) -> None:
    cert, key = authority.vouch("server")
    assert access.certificates(None, None, None, "auto") is None
    assert access.certificates(cert, key, None, "local") is not None
    with pytest.raises(ConfigError, match="load balancer with TLS"):
        access.certificates(cert, key, None, "auto")
    for given in ((cert, None, None), (None, key, None), (None, None, authority.path)):
        with pytest.raises(ConfigError, match="both --tls-cert and --tls-key"):
            access.certificates(*given, "local")


class Administration:
    """A socket as HAProxy's, that answers each connection with the next of `answers` and keeps what came."""

    def __init__(self, folder: Path, *answers: str) -> None:
        (folder / "one").mkdir()
        self.came: list[str] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / "one" / "admin.sock"))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, args=(answers,), daemon=True)
        self._thread.start()

    def _serve(self, answers: tuple[str, ...]) -> None:
        for answer in answers:
            connection, _ = self._listening.accept()
            with connection:
                self.came.append(connection.recv(1 << 16).decode())
                connection.sendall(answer.encode())

    def end(self) -> list[str]:
        self._thread.join(10)
        self._listening.close()
        return self.came


def test_new_files_are_passed_on_once(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.vouch("server")
    folder = tmp_path / "f"
    folder.mkdir()
    certificates = Certificates(cert, key)
    certificates.put(folder)
    assert not certificates.reload(folder)
    authority.vouch("server")
    with pytest.raises(NoBackend):
        certificates.reload(folder)
    haproxy = Administration(folder, "Transaction created\n", "Committing.\nSuccess!\n")
    assert certificates.reload(folder)
    assert not certificates.reload(folder)
    written, committed = haproxy.end()
    sent = (cert.read_text() + key.read_text()).strip()
    assert written == f"set ssl cert {folder}/server.pem <<\n{sent}\n\n"
    assert committed == f"commit ssl cert {folder}/server.pem\n"
    assert (folder / "server.pem").read_text() == cert.read_text() + key.read_text()


def test_what_haproxy_does_not_take_is_told_without_its_words(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.vouch("server")
    folder = tmp_path / "f"
    folder.mkdir()
    certificates = Certificates(cert, key)
    authority.vouch("server")
    haproxy = Administration(folder, "Unknown command: MIIsecret\n", "Can't commit\n", "")
    with pytest.raises(ConfigError, match="does not take the new file of --tls-cert$"):
        certificates.reload(folder)
    assert haproxy.end()[2].startswith("abort ssl cert ")


def test_both_frontends_listen_with_tls_and_nothing_else_does() -> None:
    options = 'ssl crt "/f/server.pem"'
    plain = haproxy_wrapper.completed(CONFIGURATION, "k").splitlines()
    lines = haproxy_wrapper.completed(CONFIGURATION, "k", tls=options).splitlines()
    changed = [(before, after) for before, after in zip(plain, lines, strict=True) if before != after]
    assert [after.removeprefix(before) for before, after in changed] == [
        f" {options} alpn h2,http/1.1",
        f" {options} alpn h2",
    ]

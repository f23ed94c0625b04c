"""TLS of a local server, by its HAProxy: certificate and key, the authority of its clients, and new ones while it runs.

HAProxy reads copies in the server's own folder, private as that is: one file with both certificate and key, whoever may
read the originals, and the same names for `set ssl cert` on its socket, which changes them without a restart.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from enginehouse.cluster import haproxy
from enginehouse.contract.config.tokens_file import signature
from enginehouse.contract.errors import ConfigError, NoBackend
from enginehouse.contract.store.private import replace_private

_SERVER, _CLIENTS = "server.pem", "clients.pem"


class Certificates:
    """The files of `--tls-cert`, `--tls-key` and `--tls-client-ca`; a `client_ca` is whom clients have to be vouched
    for by.

    Raises ConfigError for files that cannot be used together.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._seen = self._signature()
        self._texts = self._read()

    def put(self, folder: Path) -> str:
        """Put the copies into `folder`; the options for HAProxy's `bind` lines."""
        for name, text in self._texts.items():
            replace_private(folder / name, text)
        clients = f' ca-file "{folder / _CLIENTS}" verify required' if self._client_ca else ""
        return f'ssl crt "{folder / _SERVER}"{clients}'

    def reload(self, folder: Path) -> bool:
        """Have HAProxy use the files as they are now; False where they are as before.

        Raises ConfigError, also for what HAProxy does not take, and NoBackend where it does not answer: what it has
        stays, and the next call tries again.
        """
        seen = self._signature()
        if seen == self._seen:
            return False
        texts = self._read()
        for name, text in texts.items():
            # Those that start from now on read it; those that run are told.
            replace_private(folder / name, text)
            self._tell(folder, name, text)
        self._seen, self._texts = seen, texts
        return True

    def _tell(self, folder: Path, name: str, text: str) -> None:
        kind = "ca-file" if name == _CLIENTS else "cert"
        # An empty line would end it.
        lines = "\n".join(line for line in text.splitlines() if line.strip())
        answer = haproxy.asked(folder, f"set ssl {kind} {folder / name} <<\n{lines}\n")
        answer += haproxy.asked(folder, f"commit ssl {kind} {folder / name}")
        if not answer.strip():
            raise NoBackend("HAProxy does not answer on its socket")
        if "Success!" not in answer:
            haproxy.asked(folder, f"abort ssl {kind} {folder / name}")
            # Not what it answers, which may quote a key.
            option = "--tls-client-ca" if name == _CLIENTS else "--tls-cert"
            raise ConfigError(f"HAProxy does not take the new file of {option}")

    def _signature(self) -> tuple[tuple[int, ...], ...]:
        return tuple(signature(path) for path in (self._cert, self._key, self._client_ca) if path)

    def _read(self) -> dict[str, str]:
        options = [("--tls-cert", self._cert), ("--tls-key", self._key), ("--tls-client-ca", self._client_ca)]
        texts = {option: _text(option, path) for option, path in options if path}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Nobody is there to be asked for the password of a key.
            context.load_cert_chain(self._cert, self._key, password=lambda: b"")
        except (ssl.SSLError, OSError, ValueError) as error:
            why = getattr(error, "reason", None) or type(error).__name__
            raise ConfigError(
                f"--tls-cert {self._cert} and --tls-key {self._key} are no certificate chain in PEM and its key with "
                f"no password ({str(why).replace('_', ' ').lower()})"
            ) from None
        if self._client_ca:
            try:
                context.load_verify_locations(self._client_ca)
            except (ssl.SSLError, OSError) as error:
                why = getattr(error, "reason", None) or type(error).__name__
                raise ConfigError(
                    f"--tls-client-ca {self._client_ca} is no certificate in PEM ({str(why).replace('_', ' ').lower()})"
                ) from None
        found = {_SERVER: f"{texts['--tls-cert'].rstrip()}\n{texts['--tls-key'].strip()}\n"}
        return found | ({_CLIENTS: texts["--tls-client-ca"]} if self._client_ca else {})


def _text(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror or type(error).__name__}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {path} is no PEM file") from None

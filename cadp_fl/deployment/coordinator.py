"""Where a coordinator keeps what: one folder of the user that serves a federation.

coordinator.yaml     its name, and how sites reach it
invitation.yaml      what sites know of it; public
admitted/<site>.pub  the public keys of the sites that may connect; what stands there is what holds
certificates/        of the federation's own authority (ca), the SuperLink and the proxy, each .crt and .key
nginx.conf           the door that sites come through
flower/              Flower's own files (FLWR_HOME); config.toml has the connection to the SuperLink
state/               the SuperLink's database, which holds releases
logs/  temporary/    what the SuperLink and nginx write
"""

import datetime
import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2
from pydantic import TypeAdapter, ValidationError

from cadp_fl.config import LOOPBACK, CoordinatorConfig, Invitation, SiteName, dump, load_coordinator, load_invitation
from cadp_fl.deployment.certificates import (
    CertifiedKey,
    check_server_files,
    end_of,
    is_signed_by,
    new_authority,
    new_server_key,
)
from cadp_fl.errors import InputError
from cadp_fl.outputs import check_unicode, new_folder, replaced_file, write_durably
from cadp_fl.site.keys import check_public_key, fingerprint

__all__ = ["CONNECTION", "CoordinatorFolder", "ServerFiles"]

CONNECTION = "superlink"
"""Name of the connection to the SuperLink in Flower's config."""

SUPERLINK_HOSTS = ("localhost", "127.0.0.1")
RENEWAL = datetime.timedelta(days=30)
"""Life that is left to a certificate when another is made."""

MAX_KEY_BYTES = 4096
MAX_CERTIFICATE_BYTES = 100_000
_SITE_NAME = TypeAdapter(SiteName)


class ServerFiles(NamedTuple):
    """A coordinator's own certificate, where its federation's authority is not to sign it. All are PEM files.

    Attributes:
        certificate: the chain after it.
        key: without a password.
        authorities: that sites verify it by; those that their systems know without.
    """

    certificate: Path
    key: Path
    authorities: Path | None = None


@dataclass(frozen=True)
class CoordinatorFolder:
    """What a coordinator has.

    Attributes:
        path: of the folder, absolute.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: CoordinatorConfig, *, server: ServerFiles | None = None) -> "CoordinatorFolder":
        """Make the folder of a federation: keys, certificates, the door's settings, and the invitation.

        Args:
            server: a certificate that others signed, and its key; the federation's own authority signs one without.

        Raises:
            InputError: there is something at the path, or the certificate is none that sites would take.
        """
        path = path.absolute()
        check_unicode(path, "A coordinator's folder")
        if server is not None:
            if config.proxy == "none":
                raise InputError(
                    "A certificate of your own is the proxy's. Found one without a proxy; leave --certificate or "
                    "--no-proxy out."
                )
            check_server_files(server.certificate, server.key, config.host, server.authorities)
        with new_folder(path, "A coordinator's folder", mode=0o700) as temporary:
            made = cls(temporary)
            for folder in (made.admitted, made.certificates, made.flower, made.state, made.logs, made.temporary):
                folder.mkdir(mode=0o700)
            made.config.write_text(dump(config), encoding="utf-8")
            authority = new_authority(config.federation)
            made._write_pair("ca", authority)
            made._write_pair("superlink", new_server_key(authority, SUPERLINK_HOSTS))
            authorities: bytes | None = authority.certificate
            if config.proxy == "nginx":
                if server is None:
                    made._write_pair("proxy", new_server_key(authority, [config.host]))
                else:
                    authorities = _bounded(server.authorities) if server.authorities is not None else None
                    made._write_pair("proxy", CertifiedKey(_bounded(server.certificate), _bounded(server.key)))
                made.nginx.write_text(_nginx(config), encoding="utf-8")
            invitation = Invitation(
                federation=config.federation,
                address=config.address,
                certificate=None if authorities is None else authorities.decode("ascii"),
            )
            made.invitation_file.write_text(dump(invitation), encoding="utf-8")
            cls(path).write_connection(into=made.flower)
        return cls(path)

    @classmethod
    def at(cls, path: Path) -> "CoordinatorFolder":
        """Return the folder that is at a path.

        Raises:
            InputError: there is none.
        """
        folder = cls(path.absolute())
        if not folder.config.is_file():
            raise InputError(
                f"A coordinator's folder holds coordinator.yaml. '{path}' does not; make one with cadp-fl coordinator "
                "init, or check the path."
            )
        return folder

    @property
    def config(self) -> Path:
        """Its name, and how sites reach it."""
        return self.path / "coordinator.yaml"

    @property
    def invitation_file(self) -> Path:
        """What sites know of it."""
        return self.path / "invitation.yaml"

    @property
    def admitted(self) -> Path:
        """The public keys of the sites that may connect."""
        return self.path / "admitted"

    @property
    def certificates(self) -> Path:
        """Certificates and their keys."""
        return self.path / "certificates"

    @property
    def authority(self) -> Path:
        """The certificate of the federation's own authority, which signs the SuperLink's."""
        return self.certificates / "ca.crt"

    @property
    def nginx(self) -> Path:
        """The door's settings."""
        return self.path / "nginx.conf"

    @property
    def flower(self) -> Path:
        """Flower's own files."""
        return self.path / "flower"

    @property
    def state(self) -> Path:
        """The SuperLink's database, and what belongs to it."""
        return self.path / "state"

    @property
    def logs(self) -> Path:
        """What the SuperLink and nginx say."""
        return self.path / "logs"

    @property
    def temporary(self) -> Path:
        """What nginx puts aside of a request while it arrives."""
        return self.path / "temporary"

    @property
    def lock(self) -> Path:
        """Is held by whoever serves the folder."""
        return self.path / "serve.lock"

    def load(self) -> CoordinatorConfig:
        """Return its settings.

        Raises:
            ConfigError: they are missing or wrong.
        """
        return load_coordinator(self.config)

    def invitation(self) -> Invitation:
        """Return what sites know of it.

        Raises:
            ConfigError: it is missing or wrong.
        """
        return load_invitation(self.invitation_file)

    def write_connection(self, *, into: Path | None = None) -> None:
        """Write Flower's config, which knows the SuperLink by this folder's place.

        Args:
            into: another place for the file than its own.
        """
        config = self.load() if into is None else load_coordinator(into.parent / self.config.name)
        address, authority = f"127.0.0.1:{config.superlink_port}", str(self.authority)
        with replaced_file((into or self.flower) / "config.toml", mode=0o600) as temporary:
            # JSON strings are TOML strings.
            temporary.write_text(
                f"[superlink]\ndefault = {json.dumps(CONNECTION)}\n\n[superlink.{CONNECTION}]\n"
                f"address = {json.dumps(address)}\nroot-certificates = {json.dumps(authority, ensure_ascii=False)}\n",
                encoding="utf-8",
            )

    def key_files(self) -> dict[str, Path]:
        """Return the public key's file of every admitted site, by its name.

        Raises:
            InputError: a file's name cannot be a site's.
        """
        return {_site_name(file): file for file in sorted(self.admitted.glob("*.pub"))}

    def admit(self, files: Sequence[Path]) -> dict[str, str]:
        """Admit sites by their public keys, all or none; a site is named by its file.

        Returns:
            the key's fingerprint of each, by name.

        Raises:
            InputError: a name or a key cannot be a site's, or is admitted already.
        """
        known = {name: _key(file) for name, file in self.key_files().items()}
        fresh: dict[str, bytes] = {}
        for file in files:
            name = _site_name(file)
            data = _bounded(file, MAX_KEY_BYTES)
            check_public_key(data, f"'{file}'")
            _check_fresh(name, data, known | fresh)
            fresh[name] = data
        for name, data in fresh.items():
            write_durably(self.admitted / f"{name}.pub", data, mode=0o644)
        return {name: fingerprint(data) for name, data in fresh.items()}

    def fingerprints(self) -> dict[str, str]:
        """Return the key's fingerprint of every admitted site, by its name.

        Raises:
            InputError: a file among them is no key.
        """
        return {name: fingerprint(_key(file)) for name, file in self.key_files().items()}

    def expel(self, name: str) -> None:
        """Admit a site no longer.

        Raises:
            InputError: it is not admitted.
        """
        files = self.key_files()
        if name not in files:
            raise InputError(
                f"A site is removed that was admitted. '{name}' was not; admitted are: {', '.join(files) or 'none'}."
            )
        files[name].unlink()

    def renew(self) -> list[str]:
        """Renew what the federation's own authority signed and what ends soon.

        Returns:
            a sentence on each certificate that was renewed, or that its owner has to see to.

        Raises:
            InputError: a certificate ended, and its owner has to bring another.
        """
        config, said = self.load(), []
        authority = CertifiedKey(self.authority.read_bytes(), (self.certificates / "ca.key").read_bytes())
        servers: dict[str, Sequence[str]] = {"superlink": SUPERLINK_HOSTS}
        if config.proxy == "nginx":
            servers["proxy"] = [config.host]
        now = datetime.datetime.now(datetime.UTC)
        for name, hosts in servers.items():
            file = self.certificates / f"{name}.crt"
            certificate = file.read_bytes()
            if (end := end_of(certificate)) - now > RENEWAL:
                continue
            if is_signed_by(certificate, authority.certificate):
                self._write_pair(name, new_server_key(authority, hosts))
                said.append(f"Renewed the certificate of the {name}, which was to end on {end:%Y-%m-%d}.")
            elif end < now:
                raise InputError(
                    f"Sites take a certificate until its end. '{file}' ended on {end:%Y-%m-%d}; put a new one in its "
                    f"place, and its key beside it as {name}.key."
                )
            else:
                said.append(f"The certificate '{file}' ends on {end:%Y-%m-%d}; get a new one before.")
        return said

    def _write_pair(self, name: str, pair: CertifiedKey) -> None:
        write_durably(self.certificates / f"{name}.key", pair.key, mode=0o600)
        write_durably(self.certificates / f"{name}.crt", pair.certificate, mode=0o644)


def _nginx(config: CoordinatorConfig) -> str:
    """Return the door's settings. On this machine alone, where that is what the host says."""
    listens = [f"127.0.0.1:{config.port}"] if config.host in LOOPBACK else [str(config.port)]
    if _is_ipv6(config.host):
        listens.append(f"[::]:{config.port}")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cadp_fl.federated"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  # no page, and its two values are checked numbers and addresses
        keep_trailing_newline=True,
    )
    return environment.get_template("nginx.conf").render(listens=listens, superlink_port=config.superlink_port)


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _site_name(file: Path) -> str:
    try:
        return _SITE_NAME.validate_python(file.stem if file.suffix == ".pub" else "")
    except ValidationError as error:
        raise InputError(
            "A site's public key is a file SITE.pub, and a site's name is up to 40 lower-case letters, digits and "
            f"hyphens. Found '{file.name}'; rename it."
        ) from error


def _check_fresh(name: str, data: bytes, known: Mapping[str, bytes]) -> None:
    """Check that neither a name nor a key is admitted."""
    owners = {fingerprint(key): owner for owner, key in known.items()}
    if (owner := owners.get(fingerprint(data))) is not None:
        raise InputError(f"A key is admitted once. That of '{name}' is, as '{owner}'; leave it out.")
    if name in known:
        raise InputError(
            f"A site has one key. '{name}' has another; if it is to be replaced, run cadp-fl coordinator remove FOLDER "
            f"{name} first."
        )


def _key(file: Path) -> bytes:
    data = _bounded(file, MAX_KEY_BYTES)
    check_public_key(data, f"'{file}'")
    return data


def _bounded(file: Path, limit: int = MAX_CERTIFICATE_BYTES) -> bytes:
    """Return a file's bytes.

    Raises:
        InputError: it is missing or too large.
    """
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size > limit:
                raise InputError(f"A key or certificate has at most {limit} bytes. '{file}' has more; check the path.")
            return stream.read(limit + 1)
    except OSError as error:
        raise InputError(
            f"A key or certificate is a file that can be read. '{file}' is not ({error.strerror}); check the path."
        ) from error

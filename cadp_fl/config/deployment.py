"""The settings of a real federation: what a coordinator, a site's agent and its SuperNode each know.

An invitation goes from the coordinator to a site. Nothing in these files is a secret; the keys lie beside them.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cadp_fl.config.names import SiteName
from cadp_fl.config.settings import Name, Settings, Threads
from cadp_fl.config.study import DataConfig

__all__ = ["LOOPBACK", "CoordinatorConfig", "Invitation", "NodeConfig", "SiteConfig", "SiteName"]

LOOPBACK = ("localhost", "127.0.0.1")
"""Hosts that are this machine alone."""

_Port = Annotated[int, Field(ge=1, le=65535)]
_Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,250}[A-Za-z0-9])?$")]
_Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}$")]


class CoordinatorConfig(Settings):
    """The coordinator's side of a federation."""

    federation: SiteName = Field(description="its name")
    host: _Host = Field(description="name or address under which sites reach the coordinator; its certificate names it")
    port: _Port = Field(description="that sites reach")
    proxy: Literal["nginx", "none"] = Field(
        "nginx", description="what stands before the SuperLink and lets sites reach the fleet API alone"
    )
    superlink_port: _Port = Field(description="of the SuperLink, on this machine alone")

    @model_validator(mode="after")
    def _has_a_door(self) -> Self:
        if self.proxy == "none" and self.host not in LOOPBACK:
            raise ValueError(
                "whoever reaches the SuperLink itself may submit code to every site, so that without a proxy it is "
                f"reached from its own machine alone, as {' or '.join(LOOPBACK)}. Found the host '{self.host}'; leave "
                "the proxy before it"
            )
        if (self.proxy == "none") != (self.port == self.superlink_port):
            raise ValueError(
                "the proxy and the SuperLink have a port each, and without a proxy there is one. Found "
                f"{self.port} and {self.superlink_port}; choose other ports"
            )
        return self

    @property
    def address(self) -> str:
        """Host and port, as sites call it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Invitation(Settings):
    """What a coordinator sends its sites: where it is, and which certificates it proves that by. It is public."""

    federation: SiteName = Field(description="name of the federation")
    address: _Address = Field(description="host and port of the coordinator")
    certificate: str | None = Field(
        None,
        max_length=100_000,
        description="certificates (PEM) that sign the coordinator's; none where every system knows who does",
    )

    @field_validator("certificate")
    @classmethod
    def _is_pem(cls, text: str | None) -> str | None:
        if text is None:
            return text
        if "BEGIN CERTIFICATE" not in text or "PRIVATE" in text:
            raise ValueError("a certificate is PEM text that begins with BEGIN CERTIFICATE, and holds no key")
        from cryptography import x509

        begun = text.count("BEGIN CERTIFICATE")
        try:
            whole = len(x509.load_pem_x509_certificates(text.encode()))
        except ValueError:
            whole = 0
        if whole != begun:
            raise ValueError(
                f"each certificate is whole, from BEGIN CERTIFICATE to END CERTIFICATE. Found {begun}, of which one at "
                "least is damaged or cut off; ask the coordinator for the invitation again"
            )
        return text

    @property
    def fingerprint(self) -> str:
        """The SHA256 of what it says, however its file is laid out: to compare by telephone."""
        certificate = None if self.certificate is None else self.certificate.split()
        said = json.dumps([self.federation, self.address, certificate])
        digest = hashlib.sha256(said.encode()).hexdigest()
        return "SHA256:" + "-".join(digest[start : start + 8] for start in range(0, len(digest), 8))


class NodeConfig(Settings):
    """What a site's SuperNode knows: whom it calls, as whom, and where the agent's socket is."""

    site: SiteName = Field(description="name of the site")
    federation: SiteName = Field(description="name of the federation")
    address: _Address = Field(description="host and port of the coordinator")
    socket: Path = Field(description="of the site's agent, absolute")
    port: _Port | None = Field(
        None, description="that the SuperNode and its own processes meet at, on this machine alone; a free one without"
    )


class SiteConfig(Settings):
    """What a site's agent knows beside its policy. Sites describe themselves by `site` and `dataset`, and no path."""

    site: SiteName = Field(description="name of the site, as the coordinator registers it")
    data: DataConfig | None = Field(None, description="the site's own records")
    rehearsal: Path | None = Field(
        None,
        description="a study config in place of own records: those that its simulation deals to a site of this name",
    )
    dataset: Name | None = Field(
        None, description="what the records are, in words that all sites share; a rehearsal has its own"
    )
    test_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of the ids that are tested on and never trained on, where the source has no test split; 0: "
        "nobody is, and no evaluation is answered. Fixed once the ledger is made",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<index>")
    threads: Threads = Field(1, description="CPU threads of the agent")
    group: str | None = Field(
        None, description="group of the SuperNode's user, which may reach the agent; only the agent's user without it"
    )
    mark: Path | None = Field(
        None,
        description="file that remembers how far the ledger has come, best on another volume; beside it by default",
    )
    request_bytes: int = Field(1 << 30, ge=1, le=1 << 40, description="largest request that is read")

    @model_validator(mode="after")
    def _has_records(self) -> "SiteConfig":
        if (self.data is None) == (self.rehearsal is None):
            raise ValueError("a site has records: its own (data) or a rehearsal's. Found both or neither")
        return self

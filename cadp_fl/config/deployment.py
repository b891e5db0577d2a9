"""The settings of a real federation: what a coordinator, a site's agent and its SuperNode each know.

An invitation goes from the coordinator to a site. Nothing in these files is a secret; the keys lie beside them.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cadp_fl.config.settings import Count, Fraction, Name, Settings
from cadp_fl.config.study import DataConfig

__all__ = ["CoordinatorConfig", "Invitation", "NodeConfig", "SiteConfig", "SiteName"]

SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
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


class Invitation(Settings):
    """What a coordinator tells its sites: where it is, and which certificates it proves that by. It is public."""

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
        if text is not None and ("BEGIN CERTIFICATE" not in text or "PRIVATE" in text):
            raise ValueError("a certificate is PEM text that begins with BEGIN CERTIFICATE, and holds no key")
        return text


class NodeConfig(Settings):
    """What a site's SuperNode knows: whom it calls, as whom, and where the agent's socket is."""

    site: SiteName = Field(description="name of the site")
    federation: SiteName = Field(description="name of the federation")
    address: _Address = Field(description="host and port of the coordinator")
    socket: Path = Field(description="of the site's agent, absolute")


class SiteConfig(Settings):
    """What a site's agent knows beside its policy. Sites describe themselves by `site` and `dataset`, and no path."""

    site: SiteName = Field(description="name of the site, as the coordinator registers it")
    data: DataConfig | None = Field(None, description="the site's own records")
    rehearsal: Path | None = Field(
        None,
        description="a study config in place of own records: those that its simulation deals to a site of this name",
    )
    dataset: Name | None = Field(
        None, description="what the records are, in words that all sites share; by default the source's name for them"
    )
    test_fraction: Fraction = Field(
        0.2, description="share of units that are tested on and never trained on, where the source has no test split"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<index>")
    threads: Count = Field(1, description="CPU threads of the agent")
    group: str | None = Field(
        None, description="group of the SuperNode's user, which may reach the agent; only the agent's user without it"
    )
    mark: Path | None = Field(
        None,
        description="file that remembers how far the ledger has come, best on another volume; beside it by default",
    )
    request_bytes: Count = Field(1 << 30, description="largest request that is read")

    @model_validator(mode="after")
    def _has_records(self) -> "SiteConfig":
        if (self.data is None) == (self.rehearsal is None):
            raise ValueError("a site has records: its own (data) or a rehearsal's. Found both or neither")
        return self

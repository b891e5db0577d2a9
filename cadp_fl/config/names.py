"""What names may look like, and the few words that many configs, requests and files have in common."""

from typing import Annotated, Literal

from pydantic import Field

__all__ = ["NAME", "EventId", "Labels", "Population", "SiteName", "Unit"]

NAME = r"[a-z0-9][a-z0-9-]{0,39}"
"""Of a site, a method or a part that a plugin adds: no name holds what keys and event ids put between names."""

SiteName = Annotated[str, Field(pattern=rf"^{NAME}$")]
Population = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
EventId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]
"""`<method>-<stage>-<number>`."""

Unit = Literal["record", "patient"]
"""What one neighbouring data set may change."""

Labels = Literal["public", "covered"]
"""Whether a record's label is public by declaration, or covered by the claim."""

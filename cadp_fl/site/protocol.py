"""What may be asked of a site: twelve actions, each a request of JSON settings and named arrays.

This module imports neither torch nor data code, so that the code which a server ships to a site stays thin.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

__all__ = ["ACTIONS", "Action", "Reply", "Request", "SitePort"]

Action = Literal[
    "describe",
    "reserve",
    "train_flow",
    "moments",
    "train_private_flow",
    "count",
    "release",
    "fetch",
    "train_classifier",
    "evaluate",
    "train_local",
    "account",
]

ACTIONS: dict[Action, str] = {
    "describe": "query.cadp_describe",
    "reserve": "query.cadp_reserve",
    "train_flow": "train.cadp_flow",
    "moments": "query.cadp_moments",
    "train_private_flow": "train.cadp_private_flow",
    "count": "query.cadp_count",
    "release": "query.cadp_release",
    "fetch": "query.cadp_fetch",
    "train_classifier": "train.cadp_classifier",
    "evaluate": "evaluate.cadp_classifier",
    "train_local": "query.cadp_local",
    "account": "query.cadp_account",
}
"""Every action, with its Flower message type. The prefix keeps them apart from the handlers of a host app."""


@dataclass(frozen=True)
class Request:
    """What a server asks. All of it is untrusted to the site.

    Attributes:
        action: what to do.
        settings: JSON values; the site parses them against a model of its own.
        arrays: named tensors.
        run: id of the run that asks, under which a site keeps its plans; empty in a simulation.
        id: of the request. A site whose ledger is durable answers it once, and the same again if it is asked again.
    """

    action: Action
    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    run: str = ""
    id: str = ""

    def sha256(self) -> str:
        """Return the hash of what is asked, whatever its id."""
        digest = hashlib.sha256(
            json.dumps([self.action, self.run, self.settings], sort_keys=True, separators=(",", ":")).encode()
        )
        for name, array in sorted(self.arrays.items()):
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Reply:
    """What a site answers. All of it is untrusted to the server.

    Attributes:
        content: JSON values. What is computed from training records and not accounted stands below
            `simulation_only`, which a real site leaves out.
        arrays: named tensors.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class SitePort(Protocol):
    """A site, wherever its records are: in this process, or behind the socket of an agent."""

    def call(self, request: Request) -> Reply:
        """Answer a request, or raise a `CadpError`."""
        ...

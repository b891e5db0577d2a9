"""A site in the process of a Flower node, over the records of a host app. For simulations alone.

The host app's own code runs in that process and could read the records, so nothing here keeps them from whoever ships
it. A real site keeps its records behind an agent of its own.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context

from cadp_fl.data.arrays import dataset_of
from cadp_fl.data.partition import SiteData
from cadp_fl.device import resolve_device
from cadp_fl.errors import ConfigError
from cadp_fl.federated.flower_client import is_simulated
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.site.site import Site

__all__ = ["simulation_site"]

STATE = "cadp-site"
OUTBOX = "outbox"


def simulation_site(
    context: Context,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    classes: Iterable[str | int],
    levels: int = 256,
    name: str | None = None,
    noise_seed: int | None = None,
    device: str = "auto",
    outbox: Path | None = None,
) -> Site:
    """Return the site of a simulated node, made again for every message; its ledger lives in the node's state.

    Args:
        context: of the node that got a message.
        train: images and labels of the node's training records, and their patients if they are known; as
            `dataset_of` takes them.
        test: those of its test records, of which no record and no patient is in the training records.
        classes: one name a class, the same at every site and in the same order; label 0 is the first.
        levels: number of grey levels of a pixel.
        name: of the site; by default `site-1` for partition 0, as a study names its sites.
        noise_seed: for reproducible tests, of a study with `noise: seeded`; by default the noise comes from the
            operating system's entropy.
        device: where to compute.
        outbox: folder of this site's releases until they are fetched, on a disk that all processes of the node share.
            By default a temporary folder that only this user can read, whose path the node's state remembers; it stays
            when the run is over.

    Raises:
        ConfigError: the node is not one of a simulation.
        DataError: the records have a wrong type, shape or range.
    """
    if not is_simulated(context):
        raise ConfigError(
            "A site in a Flower node's own process is for simulations, whose nodes have a partition-id and name no "
            "agent. This node does not; at a real site, return a client of the site's agent."
        )
    name = name or f"site-{int(context.node_config['partition-id']) + 1}"
    state = context.state.config_records.setdefault(STATE, ConfigRecord())
    if outbox is None:
        if OUTBOX not in state:
            state[OUTBOX] = tempfile.mkdtemp(prefix=f"cadp-fl-{name}-")
        outbox = Path(str(state[OUTBOX]))
    names = tuple(classes)
    data = SiteData(*(dataset_of(*records, classes=names, levels=levels) for records in (train, test)))
    root = NoiseSource.from_entropy() if noise_seed is None else NoiseSource.from_seed(noise_seed)
    return Site(
        name,
        data,
        ledger=MemoryLedger(state),
        noise=root.child("site", name),
        device=resolve_device(device),
        outbox=outbox,
        simulation=True,
    )

"""What stands in for a run leaves a checkpoint, as every run does."""

from pathlib import Path

from cadp_fl.config import StudyConfig
from cadp_fl.data.partition import deal
from cadp_fl.data.sources import load_source
from cadp_fl.federated.basis import Basis
from cadp_fl.federated.checkpoint import Checkpoint
from cadp_fl.study.run import fingerprints


def leave_checkpoint(study: StudyConfig, folder: Path) -> None:
    """Write what a run of a study that is begun now would rest on."""
    sites = deal(
        load_source(study.data), study.sites.count, study.sites.partition, study.data.test_fraction, seed=study.seed
    )
    Checkpoint.begin(folder, {}, Basis.of(study)).hold_records(fingerprints(study, sites))

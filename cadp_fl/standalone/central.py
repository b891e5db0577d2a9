"""The central classifier, trained on releases alone. All of it is post-processing: it costs no privacy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cadp_fl.classifier.models import check_classifier
from cadp_fl.classifier.storage import ClassifierCard, save_classifier
from cadp_fl.classifier.training import log_odds, train_class_balanced
from cadp_fl.config import ClassifierConfig, StudyConfig, parse
from cadp_fl.data.codec import codec_of
from cadp_fl.data.medmnist import read_medmnist_as
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.table import read_rows
from cadp_fl.data.table_schema import table_schema_for
from cadp_fl.device import resolve_device
from cadp_fl.errors import InputError
from cadp_fl.evaluation.utility import Metrics, evaluate, metrics_of
from cadp_fl.federated.methods.parts.central import CHECKPOINTS
from cadp_fl.federated.recorder import Watcher
from cadp_fl.outputs import check_new, folder_above
from cadp_fl.release.dataset import ReleasedRecords
from cadp_fl.release.manifest import Manifest
from cadp_fl.standalone.bundles import open_bundles

__all__ = ["ClassifierOptions", "train_central"]

METHOD = "train-central"
MODEL_OF_ROWS = "logistic"


@dataclass(frozen=True)
class ClassifierOptions:
    """What a caller says of the classifier. None: as the study says, or the default where there is no study.

    Attributes:
        model: name of a classifier.
        width: channels of its first layer.
        epochs: passes over the pooled, class-balanced releases.
        batch_size: records in one step.
        learning_rate: step size at its peak.
        weight_decay: decoupled weight decay.
        seed: of initial weights and batches.
        device: where to compute.
    """

    model: str | None = None
    width: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    seed: int | None = None
    device: str | None = None

    def config(self, study: StudyConfig | None, schema: Schema) -> ClassifierConfig:
        """Return the settings of the classifier; of rows it is logistic where nobody says which.

        Raises:
            ConfigError: one is out of range, or the classifier is unknown.
        """
        tree = (study.classifier if study else ClassifierConfig()).model_dump()
        if schema.kind == "row" and tree["model"] == ClassifierConfig().model:
            tree["model"] = MODEL_OF_ROWS
        tree |= self._given("model", "width")
        tree["central"] |= self._given("epochs", "batch_size", "learning_rate", "weight_decay")
        config = parse(ClassifierConfig, tree, where="classifier")
        check_classifier(config)
        return config

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def train_central(
    folders: Sequence[Path],
    output: Path,
    options: ClassifierOptions,
    *,
    study: StudyConfig | None,
    test: Path | None,
    columns: Path | None = None,
    watch: Watcher,
) -> dict[str, Any]:
    """Train a classifier on the releases in some folders, store it, and return what it is.

    With a study's settings and seed, and its releases in the order of their sites' names, the weights are those of the
    federation's central classifier.

    Args:
        test: real records to evaluate on, exactly: a MedMNIST file with a test split, or a table.
        columns: schema file of that table, where it is not written as an export is.

    Raises:
        InputError: something that was given is wrong; nothing was computed.
        ExchangeError: a release is damaged or was changed.
        TrainingError: the loss became infinite or NaN.
    """
    check_new(output, "A stored classifier")
    bundles = open_bundles(folders)
    schema = bundles[0].manifest.dataset
    config = options.config(study, schema)
    device = resolve_device(options.device or (study.device if study else "auto"))
    seed = options.seed if options.seed is not None else (study.seed if study else 0)
    torch.set_num_threads(study.sites.cpus_per_client if study else 1)  # as in a federation: sums are added up alike
    tested = None if test is None else _test_records(test, schema, columns)
    released = ReleasedRecords(bundles)
    noise = "seeded" if any(manifest.noise == "seeded" for manifest in released.manifests) else "entropy"
    card = ClassifierCard(config, schema, seed, METHOD, noise)
    model = card.build().to(device)
    loss = _train(model, released, config, seed, watch)
    with folder_above(output):
        save_classifier(output, model, card)
    metrics = None if tested is None else _metrics(model, tested)
    return {
        "classifier": str(output),
        "model": config.model,
        "seed": seed,
        "records": len(released),
        "loss": loss,
        "releases": [_release(manifest) for manifest in released.manifests],
        **({"test": {"records": len(tested), **metrics.to_json()}} if tested is not None and metrics else {}),
    }


def _train(model: nn.Module, released: ReleasedRecords, config: ClassifierConfig, seed: int, watch: Watcher) -> float:
    """Train in place, and return the last mean loss."""
    checkpoints = max(CHECKPOINTS, config.central.epochs)  # a federation has fewer, and as many steps
    watch({"step": "phases", "phases": {METHOD: checkpoints}, "sites": 0})
    losses = train_class_balanced(
        model,
        released.inputs(),
        released.labels,
        config.central,
        checkpoints=checkpoints,
        generator=torch.Generator().manual_seed(seed),
    )
    for number, loss in enumerate(losses, start=1):
        watch({"step": "round", "phase": METHOD, "round": number, "of": checkpoints, "loss": loss})
    return loss


def _test_records(path: Path, schema: Schema, columns: Path | None) -> Dataset:
    """Return the test split of a MedMNIST file, or the rows of a table, which have to fit the releases.

    Raises:
        InputError: the file is missing, has no test split, or does not fit.
    """
    if not path.is_file():
        raise InputError(f"Test records are read from a file. There is none at '{path}'; check the path.")
    if schema.kind == "row":
        rows = read_rows(path, table_schema_for(schema, columns))
        return rows.train if rows.test is None else rows.test
    if columns is not None:
        raise InputError(f"A schema file is of rows. The releases are of {schema.kind}s; leave --columns out.")
    source = read_medmnist_as(path, schema)
    if source.test is None:
        raise InputError(f"Test records are a file's test split. '{path}' has none; add test_images and test_labels.")
    if source.schema.shape != schema.shape:
        raise InputError(
            f"Test records have the shape of the released ones, {schema.shape} (channels, height, width). Those of "
            f"'{path}' are {source.schema.shape}; resize them."
        )
    return source.test


def _metrics(model: nn.Module, tested: Dataset) -> Metrics:
    scores = log_odds(model, codec_of(tested.schema).inputs(tested.records)).cpu().numpy()
    return metrics_of(evaluate(scores, tested.labels), tested.schema.classes)


def _release(manifest: Manifest) -> dict[str, Any]:
    return {
        "site": manifest.site,
        "records": manifest.records,
        "noise": manifest.noise,
        **manifest.claim.model_dump(mode="json"),
    }

"""What a release keeps: everything of a copy, nothing of noise, and what a class has in common counts for nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cadp_fl.config import FlowConfig
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.units import Units
from cadp_fl.evaluation.bounds import linkage_bound
from cadp_fl.evaluation.fidelity import correlation_within_classes, fidelity_of
from cadp_fl.evaluation.pairs import Pairs, pairs_of, pooled
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.mechanisms import NoMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.bundle import open_bundle, write_bundle
from cadp_fl.release.manifest import ReleaseClaim, ReleaseHead
from cadp_fl.release.privatize import ReleaseSettings, privatize

CPU = torch.device("cpu")
SCHEMA = Schema(name="x", shape=(1, 8, 8), classes=("a", "b"))


def records(count=300, seed=0, apart=60):
    """Return two classes, a dark and a bright one, each with smooth differences of its own records."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    waves = np.cos(np.pi * np.outer(np.arange(4), np.arange(8) + 0.5) / 8)
    shapes = np.einsum("nij,ia,jb->nab", generator.normal(size=(count, 4, 4)), waves, waves)
    images = 100 + apart * labels[:, None, None] + 12 * shapes
    return Dataset(SCHEMA, images.clip(0, 255).astype(np.uint8)[:, None], labels)


def pairs(originals, released):
    flat = [each.images.reshape(len(each), -1).astype(float) for each in (originals, released)]
    return Pairs(originals, released, flat[0][:, :8], flat[1][:, :8])


def measured(originals, released, held_out=None):
    return fidelity_of([pairs(originals, released)], held_out or records(seed=5), message=(3.0, 0.0))


def test_a_copy_keeps_all_and_shows_it():
    originals = records()
    kept = measured(originals, originals)
    for name in ("image_correlation", "latent_correlation", "label_agreement"):
        assert kept[name] == pytest.approx(1.0)
    assert kept["linkage"]["linked"] == 1.0
    assert kept["nearest"]["to_training"] == 0.0 < kept["nearest"]["to_held_out"]
    assert kept["nearest"]["nearer_to_training"] == 1.0
    distributions = kept["distributions"]
    assert distributions["frechet"] == pytest.approx(0.0, abs=1e-6)
    assert min(distributions[name] for name in ("precision", "recall", "coverage")) == 1.0
    assert kept["linear_released"]["balanced_accuracy"] > 0.9


def test_other_records_of_the_same_law_keep_nothing_of_these():
    originals = records(1000)
    others = records(1000, seed=1).select(np.random.default_rng(4).permutation(1000))
    kept = measured(originals, others, records(1000, seed=2))
    assert abs(kept["image_correlation"]) < 0.05
    assert kept["linkage"]["linked"] == pytest.approx(0.1, abs=0.05)
    assert kept["nearest"]["nearer_to_training"] == pytest.approx(0.5, abs=0.08)
    assert kept["distributions"]["precision"] > 0.7


def test_what_a_class_has_in_common_says_nothing_of_a_record():
    originals = records()
    means = np.stack([originals.images[originals.labels == label].mean(axis=0) for label in (0, 1)])
    noise = np.random.default_rng(3).normal(size=originals.images.shape)
    released = Dataset(SCHEMA, (means[originals.labels] + noise).astype(np.uint8), originals.labels)
    kept = measured(originals, released)
    assert abs(kept["image_correlation"]) < 0.05
    assert kept["linear_released"]["balanced_accuracy"] > 0.9


def test_half_of_the_signal_is_half_a_correlation():
    generator = np.random.default_rng(0)
    a = generator.normal(size=(5000, 4))
    b = 0.5 * a + np.sqrt(0.75) * generator.normal(size=a.shape)
    labels = np.arange(5000) % 3
    assert correlation_within_classes(a, labels, b + 7 * labels[:, None], labels) == pytest.approx(0.5, abs=0.03)
    assert correlation_within_classes(np.zeros_like(a), labels, b, labels) == 0.0


def test_linkage_is_bounded_as_epsilon_says():
    assert linkage_bound(0.0, 0.0, 10) == pytest.approx(0.1)
    assert linkage_bound(np.log(9), 0.0, 10) == pytest.approx(0.5)
    assert linkage_bound(0.0, 1e-2, 10) == pytest.approx(0.1 + 0.009)
    assert linkage_bound(1000.0, 0.0, 10) == 1.0


def test_a_patients_blank_is_nobodys_original(tmp_path):
    """Patients have 1, 2 and 3 records, and 2 places each: a blank, and a record that has no place."""
    originals = records(6)
    of_patients = replace(originals, patients=np.array([0, 1, 1, 2, 2, 2]))
    units = Units.of(of_patients, "patient", 2)
    flow = ConditionalFlow(FlowConfig(scales=[], dense={"blocks": 1, "width": 4}), SCHEMA.shape, 2, seed=0).eval()
    settings = ReleaseSettings(NoMechanism(), 8, "typical-set")
    order = np.random.default_rng(0).permutation(6)
    parts, _ = privatize(
        flow, of_patients, settings, noise=NoiseSource.from_seed(0), device=CPU, units=units, order=order
    )
    head = ReleaseHead(
        site="x",
        dataset=SCHEMA,
        mechanism="none",
        parameters=settings.parameters(flow.dims),
        noise="seeded",
        claim=ReleaseClaim(guarantee="none", relation="r", epsilon=None, epsilon_if_flow_were_fixed=None, delta=1e-5),
        flow_sha256="0" * 64,
        event_id="x-release-1",
    )
    write_bundle(head, parts, tmp_path / "bundle")
    found = pairs_of(
        open_bundle(tmp_path / "bundle"), of_patients, units, order, flow, directions=None, latent_dims=8, device=CPU
    )
    assert np.array_equal(found.originals.images, originals.images[[0, 1, 2, 3, 4]])
    assert np.array_equal(found.released.labels, originals.labels[[0, 1, 2, 3, 4]])
    assert found.original_latents.shape == (5, 8)
    assert correlation_within_classes(*_latents(found)) > 0.9


def _latents(found):
    labels = np.zeros(len(found), dtype=np.int64)
    return found.original_latents, labels, found.released_latents, labels


def test_a_release_of_one_class_trains_no_classifier():
    originals = records()
    released = Dataset(SCHEMA, originals.images, np.zeros(len(originals), dtype=np.int64))
    assert measured(originals, released)["linear_released"] == {"accuracy": None, "balanced_accuracy": None}
    assert measured(originals, released)["label_agreement"] == 0.5


def test_sites_are_measured_together():
    one, two = records(100), records(60, seed=9)
    assert len(pooled([one, two])) == 160
    both = fidelity_of([pairs(one, one), pairs(two, two)], records(seed=5), message=(1.0, 0.0))
    assert both["image_correlation"] == pytest.approx(1.0)

"""Releases that cover labels, and releases of patients."""

import numpy as np
import torch

from cadp_fl.config import FlowConfig
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.units import Units
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.events import RandomizedResponse
from cadp_fl.privacy.labels import randomize_labels
from cadp_fl.privacy.mechanisms import GaussianMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.privatize import ReleaseSettings, privatize

SCHEMA = Schema(name="x", shape=(1, 4, 4), classes=("a", "b", "c"))
LABELS = RandomizedResponse(stage="labels", epsilon=1.0)
CPU = torch.device("cpu")


def records(count=60, patients=None):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return Dataset(SCHEMA, images, generator.integers(0, 3, count), patients)


def flow():
    """A flow that heeds its condition, as a trained one does."""
    network, generator = ConditionalFlow(FlowConfig(scales=[{"blocks": 1, "channels": 4}]), (1, 4, 4), 3, seed=1), None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def release(network, data, labels=LABELS, units=None, std=1.0):
    settings = ReleaseSettings(GaussianMechanism(2.0, std), 4, "typical-set", labels)
    parts, cost = privatize(network, data, settings, noise=NoiseSource.from_seed(0), device=CPU, units=units)
    (part,) = parts
    return part, cost


class Spy:
    """Fixes what is encoded, and notes under which condition it was decoded."""

    def __init__(self, network):
        self.latents, self.conditions = None, []
        encode, decode = network.encode, network.decode

        def fixed(x, condition):
            z, log_det = encode(x, condition)
            self.latents = z if self.latents is None else self.latents
            return self.latents, log_det

        def noted(z, condition):
            self.conditions.append(condition.argmax(dim=1).numpy())
            return decode(z, condition)

        network.encode, network.decode = fixed, noted


def test_a_record_is_decoded_under_its_released_label_alone():
    network, data = flow(), records()
    spy = Spy(network)
    released, cost = release(network, data)
    assert np.array_equal(np.concatenate(spy.conditions)[-60:], released.labels)
    assert (released.labels != data.labels[NoiseSource.from_seed(0).child("order").permutation(60)]).sum() > 10
    assert cost == (LABELS, GaussianMechanism(2.0, 1.0).event())


def test_with_the_noised_latent_and_the_released_label_fixed_nothing_depends_on_the_true_one(monkeypatch):
    """(noised latent, y') is a complete account of a record: the image is computed from these two alone."""
    data = records()
    said = np.arange(60) % 3
    monkeypatch.setattr("cadp_fl.release.privatize.randomize_labels", lambda labels, *_: said[: len(labels)])
    network = flow()
    Spy(network)
    before, _ = release(network, data)
    after, _ = release(network, Dataset(SCHEMA, data.images, (data.labels + 1) % 3))
    assert np.array_equal(before.images, after.images)
    assert np.array_equal(before.labels, after.labels)


def test_the_released_labels_are_those_of_randomized_response_in_the_secret_order():
    data, noise = records(), NoiseSource.from_seed(0)
    order = noise.child("order").permutation(60)
    expected = randomize_labels(data.labels[order], 3, LABELS, noise.child("labels"))
    assert np.array_equal(release(flow(), data)[0].labels, expected)


def test_every_patient_yields_as_many_records_as_any_other():
    patients = np.repeat(np.arange(12), [1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 5, 2])
    data = records(len(patients), patients)
    for m in (1, 3, 10):
        assert len(release(flow(), data, None, Units.of(data, "patient", m))[0]) == 12 * m


def test_a_blank_is_noised_like_a_record_whatever_image_stands_in_for_it():
    """A patient of one record, at m = 2: the second release comes from the zero latent, not from the record again."""
    patients = np.arange(60)
    data = records(60, patients)
    other = Dataset(SCHEMA, 255 - data.images, data.labels, patients)
    units = Units.of(data, "patient", 2)
    before, _ = release(flow(), data, None, units)
    after, _ = release(flow(), other, None, units)
    blank = (NoiseSource.from_seed(0).child("order").permutation(120) % 2).astype(bool)
    same = (before.images == after.images).all(axis=(1, 2, 3))
    assert np.array_equal(same, blank)


def test_replacing_a_patient_changes_its_own_releases_alone():
    patients = np.repeat(np.arange(20), 3)
    data = records(60, patients)
    images = data.images.copy()
    images[patients == 7] = 255 - images[patients == 7]
    units = Units.of(data, "patient", 2)
    before, _ = release(flow(), data, None, units)
    after, _ = release(flow(), Dataset(SCHEMA, images, data.labels, patients), None, units)
    owner = NoiseSource.from_seed(0).child("order").permutation(40) // 2
    assert set(owner[(before.images != after.images).any(axis=(1, 2, 3))]) == {7}

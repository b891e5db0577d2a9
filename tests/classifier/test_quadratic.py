"""The quadratic discriminant is the normal densities' Bayes rule, whatever it is fitted to, and is stored whole."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

from cadp_fl.classifier.models import QUADRATIC, build_classifier
from cadp_fl.classifier.storage import ClassifierCard, load_classifier, save_classifier
from cadp_fl.classifier.training import as_input
from cadp_fl.config import ClassifierConfig
from cadp_fl.data.schema import Schema
from cadp_fl.standalone.predict import predict
from cadp_fl.weights import get_weights

SHAPE = (1, 8, 8)
RIDGE = 1e-3
CONFIG = ClassifierConfig(model=QUADRATIC, front_end={"size": 2, "descriptor": "none"})


def drawn(count=3000, seed=0):
    """Return uint8 images of three classes that differ in brightness and in contrast across, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randn(count, *SHAPE, generator=generator) * (20 + 10 * labels.view(-1, 1, 1, 1))
    ramp = torch.linspace(-1, 1, 8) * torch.randn(count, 1, 1, 1, generator=generator) * 30
    return (90 + 8 * labels.view(-1, 1, 1, 1) + noise + ramp).clamp(0, 255).to(torch.uint8), labels


def model(config=CONFIG):
    """Return one in float64, seen from some centre."""
    made = build_classifier(config, SHAPE, 3, seed=0).double()
    with torch.no_grad():
        made.coordinates.centre.fill_(0.02)
    return made


def fitted():
    images, labels = drawn()
    made = model()
    x = images.double() / 255 - 0.5
    u = made.coordinates(x + 0.5)[0].detach()
    made.fit(u, labels, ridge=RIDGE)
    return made, x, u, labels


def test_it_is_scikit_learns_on_the_same_coordinates():
    """Scikit-learn divides by n - 1 and has no ridge; 1000 records of a class make either a thousandth."""
    made, x, u, labels = fitted()
    oracle = QuadraticDiscriminantAnalysis(priors=np.full(3, 1 / 3)).fit(u.numpy(), labels.numpy())
    found = made(x).detach().log_softmax(dim=1).numpy()
    np.testing.assert_allclose(found, oracle.predict_log_proba(u.numpy()), atol=0.1)
    assert (found.argmax(axis=1) == oracle.predict(u.numpy())).mean() > 0.998
    assert (found.argmax(axis=1) == labels.numpy()).mean() > 0.45, "better than one in three"


def test_logits_are_the_log_densities_of_each_classes_normal_distribution():
    made, x, u, labels = fitted()
    found = made(x).detach().numpy()
    level = np.mean([u[labels == label].numpy().var(axis=0) for label in range(3)])
    for label in range(3):
        own = u[labels == label].numpy()
        covariance = np.cov(own.T, bias=True) + RIDGE * level * np.eye(u.shape[1])
        expected = multivariate_normal(own.mean(axis=0), covariance).logpdf(u.numpy())
        np.testing.assert_allclose(found[:, label] - 0.5 * u.shape[1] * np.log(2 * np.pi), expected, atol=1e-6)


def test_rare_classes_are_as_likely_as_frequent_ones():
    """Fitted to twice the records of one class, it is the same classifier."""
    made, x, u, labels = fitted()
    twice = model()
    twice.fit(torch.cat([u, u[labels == 1]]), torch.cat([labels, labels[labels == 1]]), ridge=RIDGE)
    torch.testing.assert_close(made(x), twice(x))


@pytest.mark.parametrize("records", [0, 1, 2])
def test_a_class_with_few_records_or_none_leaves_all_logits_finite(records):
    _, x, u, labels = fitted()
    kept = (labels != 2).nonzero().flatten()
    few = (labels == 2).nonzero().flatten()[:records]
    made = model()
    made.fit(torch.cat([u[kept], u[few]]), torch.cat([labels[kept], labels[few]]), ridge=RIDGE)
    assert torch.isfinite(made(x)).all()
    if not records:
        torch.testing.assert_close(made.mean[2].detach(), u[kept].mean(dim=0))


def test_records_that_are_all_alike_leave_all_logits_finite():
    made = model()
    made.fit(torch.zeros(30, 4).double(), torch.arange(30) % 3, ridge=RIDGE)
    assert torch.isfinite(made(torch.zeros(2, *SHAPE).double())).all()


@pytest.mark.parametrize(
    "front_end", [{"size": 2, "descriptor": "none"}, {}, {"size": 3, "contrast": 0.4, "radius": 1}]
)
def test_a_stored_one_comes_back_with_its_front_end_and_predicts_the_same(tmp_path, front_end):
    config = ClassifierConfig(model=QUADRATIC, front_end=front_end)
    images, labels = drawn(300)
    made = build_classifier(config, SHAPE, 3, seed=0)
    with torch.no_grad():
        made.coordinates.centre.fill_(0.02)
        made.fit(made.coordinates(as_input(images) + 0.5)[0], labels, ridge=RIDGE)
    card = ClassifierCard(config, Schema(name="x", shape=SHAPE, classes=("a", "b", "c")), 0, "moments", "seeded")
    save_classifier(tmp_path / "m", made, card)
    back, found = load_classifier(tmp_path / "m")
    assert found == card
    for name, weights in get_weights(made).items():
        np.testing.assert_array_equal(get_weights(back)[name], weights)
    np.savez(tmp_path / "x.npz", images=images.numpy()[:, 0])
    predictions = predict(tmp_path / "m", [tmp_path / "x.npz"], resize=False, device="cpu")
    expected = made(as_input(images)).softmax(dim=1).max(dim=1)
    assert [each.label for each in predictions] == ["abc"[label] for label in expected.indices]
    np.testing.assert_allclose([each.probability for each in predictions], expected.values.detach(), rtol=1e-3)

import pytest
import torch

from cadp_fl.classifier.fixed import split_features
from cadp_fl.classifier.models import CLASSIFIERS, build_classifier
from cadp_fl.classifier.training import log_odds, train_class_balanced, train_epochs
from cadp_fl.config import CentralTrainingConfig, ClassifierConfig
from cadp_fl.errors import TrainingError
from cadp_fl.privacy.dpsgd import check_layers

SHAPE = (1, 8, 8)


def easy(count=300, seed=0):
    """Return images of three classes that differ in brightness; the third is rare."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.5, 0.45, 0.05]), count, replacement=True, generator=generator)
    noise = torch.randint(0, 60, (count, *SHAPE), generator=generator)
    return (labels.view(-1, 1, 1, 1) * 80 + noise).to(torch.uint8), labels


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "logistic"])
@pytest.mark.parametrize("width", [1, 3, 12, 16])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (1, 5, 7)])
def test_every_classifier_takes_every_width_and_shape_and_works_under_dp_sgd(name, width, shape):
    model = build_classifier(ClassifierConfig(model=name, width=width), shape, 4, seed=0)
    check_layers(split_features(model)[1])
    assert model(torch.rand(2, *shape)).shape == (2, 4)


def test_one_seed_builds_one_classifier_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second = (build_classifier(ClassifierConfig(), SHAPE, 3, seed=5) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_class_balanced_training_learns_a_rare_class():
    images, labels = easy()
    model = build_classifier(ClassifierConfig(width=8), SHAPE, 3, seed=0)
    config = CentralTrainingConfig(epochs=20)
    losses = list(
        train_class_balanced(model, images, labels, config, checkpoints=4, generator=torch.Generator().manual_seed(0))
    )
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 2
    predicted = log_odds(model, images).argmax(dim=1)
    assert (predicted[labels == 2] == 2).float().mean() > 0.9


def test_batches_are_balanced_whatever_the_counts():
    """With one weight for each class, the first loss of a zeroed classifier is log 3 on any labels."""
    images, labels = easy()
    seen = []
    model = build_classifier(ClassifierConfig(model="linear"), SHAPE, 3, seed=0)
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append(((inputs[0] + 0.5) * 255).mean(dim=(1, 2, 3)).div(80).long())
    )
    list(train_class_balanced(
        model, images, labels, CentralTrainingConfig(epochs=20), checkpoints=1,
        generator=torch.Generator().manual_seed(1),
    ))  # fmt: skip
    shares = torch.bincount(torch.cat(seen), minlength=3) / sum(map(len, seen))
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_log_odds_are_those_of_the_softmax():
    images, _ = easy(20)
    model = build_classifier(ClassifierConfig(width=4), SHAPE, 3, seed=0)
    p = model(images.float() / 255 - 0.5).double().softmax(dim=1)
    torch.testing.assert_close(log_odds(model, images, batch_size=7), (p / (1 - p)).log(), rtol=1e-4, atol=1e-5)


def test_local_epochs_learn_and_stop_on_a_loss_that_is_not_finite():
    images, labels = easy()
    model = build_classifier(ClassifierConfig(width=8), SHAPE, 3, seed=0)
    settings = {"epochs": 3, "batch_size": 32, "generator": torch.Generator().manual_seed(0)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = train_epochs(model, images, labels, optimizer=optimizer, **settings)
    assert train_epochs(model, images, labels, optimizer=optimizer, **settings) < first
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="lower its learning rate"):
        train_epochs(model, images, labels, optimizer=optimizer, **settings)

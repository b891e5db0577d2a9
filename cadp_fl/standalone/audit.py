"""An audit of a whole site: what `evaluation.audit` attacks part by part, asked of a real `Site` in memory.

The parts may be right and the site still use one noise source twice, spend on one event and draw by another, or leave a
unit out. So a site that holds made-up records is asked as a server would ask it, with a flow of zero weights, which is
the identity: images are latents. Records that are as good as zero leave their noise alone, for `laws`; black and white
ones are the worst pair, of Gaussian noise and of PrivUnit, message by message. `shuffled_site` asks for shuffled
releases. It reads nobody's records.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cadp_fl.config import ClassifierConfig, FrontEndConfig
from cadp_fl.errors import ConfigError
from cadp_fl.evaluation.aggregates import noise_of_moments
from cadp_fl.evaluation.audit import AuditSettings, attack_result, audit, auditable, guess_result, law_results
from cadp_fl.evaluation.bounds import gaussian_bound, pure_bound
from cadp_fl.evaluation.findings import AttackResult, Finding
from cadp_fl.evaluation.laws import FAIR_LIES, Law, laws_of_labels, laws_of_numbers, laws_of_release, laws_of_units
from cadp_fl.evaluation.noised import histograms_in
from cadp_fl.evaluation.shuffled import place_releases_for, shuffled_mechanism
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import (
    GaussianHistogram,
    GaussianMoments,
    GaussianSum,
    PoissonGaussian,
    RandomizedResponse,
)
from cadp_fl.privacy.mechanisms import GaussianMechanism, PrivUnitMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import (
    ClassifierRequest,
    CountRequest,
    DpSgdTraining,
    EvaluateRequest,
    MomentsRequest,
)
from cadp_fl.site.site import Site
from cadp_fl.standalone.asked import CLASSES, DELTA, SHAPE, Asked, labelled_records, numbered_records
from cadp_fl.standalone.shuffled_site import guesses_at_a_site, laws_at_a_site

__all__ = ["SITE", "audit_all", "audit_site", "everything"]

SITE = "site"
"""What a whole site is called among all that is audited."""

_EPSILON, _CLIP_NORM = 3.0, 1.0
"""Of the site's releases: it is the site that is audited here, and not a claim."""

_UNITS, _CANARIES, _RECORDS = 2048, 8192, 60
_MANY_CLASSES = 256
_FRONT_END = FrontEndConfig(size=4, descriptor="none")
_NOISE = 256.0
"""Standard deviation of what leaves beside a release: far above the steps that numbers are released in."""

_CALLS = 8
"""Of everything beside a release; pairs of them differ by their noise alone."""


def everything() -> tuple[str, ...]:
    """Return the names of all that can be audited."""
    return (*auditable(), SITE)


def audit_all(
    names: Sequence[str], epsilons: Sequence[float], settings: AuditSettings, *, noise: NoiseSource
) -> Iterator[Finding]:
    """Yield what an audit of everything that is named finds; half of the false alarms are the site's, if it is one.

    Raises:
        ConfigError: there is no such thing, or it claims nothing.
        BudgetError: no noise meets a budget.
    """
    unknown = [name for name in names if name not in everything() and name != "none"]
    if unknown:
        raise ConfigError(f"Unknown mechanism '{unknown[0]}'. Choose one of: {', '.join(sorted(everything()))}.")
    parts = [name for name in names if name != SITE]
    share = settings.false_alarm / (2 if parts and SITE in names else 1)
    if parts:
        yield from audit(parts, epsilons, replace(settings, false_alarm=share), noise=noise)
    if SITE in names:
        yield audit_site(settings, false_alarm=share, noise=noise.child(SITE))


def audit_site(settings: AuditSettings, *, false_alarm: float, noise: NoiseSource) -> Finding:
    """Ask a site for all that it offers under noise, and return what attacks on it certify and how its laws hold.

    Args:
        settings: how many draws; the claim is the site's own.
        false_alarm: probability that it is refuted if it does what it should.
        noise: of this call alone.
    """
    gaussian = GaussianMechanism.calibrated(_CLIP_NORM, _EPSILON, DELTA)
    local = PrivUnitMechanism.calibrated(_CLIP_NORM, _EPSILON, DELTA)
    shuffled = shuffled_mechanism(_EPSILON, DELTA)
    share = false_alarm / 2 / 3
    with tempfile.TemporaryDirectory(prefix="cadp-fl-audit-") as folder:
        asked = Asked(Path(folder), noise)
        canaries = [
            _canaries(asked, settings, each, false_alarm=share, noise=noise.child("coins", each.name))
            for each in (gaussian, local)
        ]
        guesses = guesses_at_a_site(
            asked, shuffled, place_releases_for(settings.draws), noise.child("coins", "shuffled")
        )
        laws = [*_laws_of_releases(asked, gaussian), *_laws_of_what_is_beside(asked)]
        laws += [Law(f"privunit: {law.name}", law.p_value) for law in laws_at_a_site(asked, shuffled)]
    claim = epsilon_of([gaussian.event()], DELTA)
    by_place = guess_result(guesses, shuffled, epsilon_of([shuffled.event()], DELTA), DELTA, share)
    return Finding(SITE, gaussian.parameters(), claim, (*canaries, by_place), law_results(laws, false_alarm / 2))


def _canaries(
    asked: Asked,
    settings: AuditSettings,
    mechanism: GaussianMechanism | PrivUnitMechanism,
    *,
    false_alarm: float,
    noise: NoiseSource,
) -> AttackResult:
    """Release black and white images, which are opposite and as long as it goes, and tell which is which."""
    is_white = np.arange(_CANARIES) % 2 == 1
    images = np.where(is_white[:, None, None, None], np.uint8(255), np.uint8(0)) * np.ones(SHAPE, dtype=np.uint8)
    site = asked.site(f"canaries-{mechanism.name}", numbered_records(images))

    def draw(count: int, _: NoiseSource) -> tuple[np.ndarray, np.ndarray]:
        left, right = [], []
        for _release in range(math.ceil(2 * count / _CANARIES)):
            released = asked.release(site, mechanism)
            white, sums = is_white[released.units], released.noised.sum(axis=1)
            left.append(sums[~white])
            right.append(sums[white])
        return np.concatenate(left), np.concatenate(right)

    is_gaussian = isinstance(mechanism, GaussianMechanism)
    return attack_result(
        name="black-and-white" if is_gaussian else "privunit-pair",
        draw=draw,
        count=max(1, settings.draws // 40),
        bound=gaussian_bound if is_gaussian else pure_bound,
        claim=epsilon_of([mechanism.event()], DELTA),
        delta=DELTA if is_gaussian else 0.0,
        false_alarm=false_alarm,
        noise=noise,
    )


def _laws_of_releases(asked: Asked, mechanism: GaussianMechanism) -> Iterator[Law]:
    numbered = asked.site("zeros", numbered_records(asked.zeros("zeros", _UNITS)))
    first, second = (asked.release(numbered, mechanism) for _ in range(2))
    yield from laws_of_units(first.units, second.units, _UNITS, 1)
    yield from laws_of_release(first, second)
    labelled = asked.site("labels", labelled_records(asked.zeros("labels", _UNITS), np.zeros(_UNITS, dtype=np.int64)))
    lies = RandomizedResponse(stage="labels", epsilon=FAIR_LIES)
    yield from laws_of_labels(*(asked.release(labelled, mechanism, lies) for _ in range(2)))


def _laws_of_what_is_beside(asked: Asked) -> Iterator[Law]:
    """Yield the laws of the numbers of counts, sums, moments, steps of DP-SGD and evaluations."""
    labels = np.arange(_RECORDS) % CLASSES
    site = asked.site("records", labelled_records(asked.zeros("records", _RECORDS), labels))
    crowd = asked.site(
        "crowd", labelled_records(asked.zeros("crowd", _RECORDS), np.arange(_RECORDS) % _MANY_CLASSES, _MANY_CLASSES)
    )
    yield from laws_of_numbers("counts", [_counts(asked, crowd) for _ in range(_CALLS)])
    yield from laws_of_numbers("sums", [_sums(asked, site) for _ in range(4 * _CALLS)])
    yield from laws_of_numbers("moments", [_moments(asked, site) for _ in range(_CALLS)])
    yield from laws_of_numbers("steps", [_step(asked, site) for _ in range(2 * _CALLS)])
    yield from laws_of_numbers("evaluations", [_evaluation(asked, site) for _ in range(_CALLS)])


def _counts(asked: Asked, site: Site) -> np.ndarray:
    event = GaussianHistogram(stage="counts", histograms=1, noise_std=_NOISE)
    reply = asked.answer(
        site, lambda method: Request("count", CountRequest(method=method, event=event).model_dump(mode="json")), event
    )
    return np.array(list(reply.content["class_counts"].values())) / _NOISE


def _sums(asked: Asked, site: Site) -> np.ndarray:
    event = GaussianSum(stage="moments", clip_norm=1.0, noise_std=_NOISE)
    settings = MomentsRequest(method="m", front_end=_FRONT_END, event=event).model_dump(mode="json")
    reply = asked.answer(site, lambda method: Request("moments", settings | {"method": method}), event)
    return reply.arrays["sum"] / _NOISE


def _moments(asked: Asked, site: Site) -> np.ndarray:
    event = GaussianMoments(
        stage="moments",
        noise_std=_NOISE,
        clip_norm=1.0,
        count_weight=0.5,
        sum_weight=1.0,
        shared_weight=0.5,
        class_weight=0.5,
    )
    dims = _FRONT_END.size**2
    settings = MomentsRequest(method="m", front_end=_FRONT_END, event=event).model_dump(mode="json")
    centre = {"centre": np.zeros(dims)}
    reply = asked.answer(site, lambda method: Request("moments", settings | {"method": method}, centre), event)
    stds = noise_of_moments(event, CLASSES, dims)
    return np.concatenate([reply.arrays[name].ravel() / std.ravel() for name, std in stds.items()])


def _step(asked: Asked, site: Site) -> np.ndarray:
    """Return the weights after one step of all records, in units of its noise: they move by it divided by n."""
    event = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=_NOISE, sampling_rate=1.0, steps=1)
    training = DpSgdTraining(event=event, learning_rate=1.0, momentum=0.0)
    settings = ClassifierRequest(
        method="m", classifier=ClassifierConfig(model="linear"), seed=0, round=1, training=training
    ).model_dump(mode="json")
    weights = _classifier_weights()
    reply = asked.answer(
        site, lambda method: Request("train_classifier", settings | {"method": method}, weights), event
    )
    return np.concatenate([array.astype(np.float64).ravel() for array in reply.arrays.values()]) * _RECORDS / _NOISE


def _evaluation(asked: Asked, site: Site) -> np.ndarray:
    event = GaussianHistogram(stage="evaluation", histograms=histograms_in(CLASSES), noise_std=_NOISE)
    settings = EvaluateRequest(method="m", classifier=ClassifierConfig(model="linear"), seed=0, event=event).model_dump(
        mode="json"
    )
    weights = _classifier_weights()
    reply = asked.answer(
        site, lambda method: Request("evaluate", settings | {"method": method}, weights), event, on_test=True
    )
    return np.concatenate([array.ravel() for array in reply.arrays.values()]) / _NOISE


def _classifier_weights() -> dict[str, np.ndarray]:
    dims = math.prod(SHAPE)
    return {"1.weight": np.zeros((CLASSES, dims), dtype=np.float32), "1.bias": np.zeros(CLASSES, dtype=np.float32)}

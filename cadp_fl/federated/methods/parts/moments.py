"""Asking sites for noised moments: a sum first, of which the centre is made, then moments around that centre."""

import math
from collections.abc import Callable

import numpy as np

from cadp_fl.config import FrontEndConfig
from cadp_fl.data.codec import input_shape
from cadp_fl.errors import ExchangeError
from cadp_fl.features.front_end import front_end_of
from cadp_fl.federated.methods.base import StudyRun
from cadp_fl.flow.moments import NoisedMoments
from cadp_fl.privacy.events import GaussianMoments, GaussianSum
from cadp_fl.privacy.moments import Moments
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import MomentsRequest

__all__ = ["ask_for_moments"]


def ask_for_moments(
    run: StudyRun, front_end: FrontEndConfig, sum_event: GaussianSum, event: GaussianMoments, *, phase: str
) -> NoisedMoments:
    """Return the noised moments of all sites together, around a centre that is their noised mean.

    Args:
        front_end: of the flow; gives the features.
        sum_event: what the sum costs a site.
        event: what the moments cost it.
        phase: of the run.

    Raises:
        FederationError: too few sites are left: fewer than the quorum, or than share one noise.
    """
    dims, classes = front_end_of(front_end, input_shape(run.schema)).dims, len(run.schema.classes)
    sums: dict[str, np.ndarray] = {}
    moments: dict[str, Moments] = {}

    def add_sum(site: str, reply: Reply) -> None:
        total = reply.arrays.get("sum")
        if total is None or total.shape != (dims,) or total.dtype != np.float64 or not np.isfinite(total).all():
            raise ExchangeError(f"A sum is {dims} finite numbers, float64. That of '{site}' is not.")
        sums[site] = total

    def add_moments(site: str, reply: Reply) -> None:
        moments[site] = Moments.of(reply.arrays, event, classes=classes, dims=dims)

    def ask(number: int, asked: GaussianSum | GaussianMoments, check: Callable[[str, Reply], None]) -> int:
        settings = MomentsRequest(method=run.method, front_end=front_end, event=asked)
        arrays = {"centre": centre} if number == 2 else {}
        request = Request("moments", settings.model_dump(mode="json"), arrays)
        replies = run.federation.ask(request, phase=phase, round=number, of=2, check=check)
        run.federation.require(phase, len(replies), least=asked.sharers + 1 if asked.sharers > 1 else 0)
        run.federation.recorder.round(phase, number, 2)
        return sum(run.sizes[site] for site in replies) * run.study.budget.records_per_unit

    records = ask(1, sum_event, add_sum)
    noise = sum_event.noise_std * math.sqrt(len(sums)) / records
    centre = _in_unit_ball(_without_noise(np.sum([sums[site] for site in sorted(sums)], axis=0) / records, noise))
    records = ask(2, event, add_moments)
    return NoisedMoments(centre, Moments.total([moments[site] for site in sorted(moments)]), records, len(moments))


def _without_noise(mean: np.ndarray, std: float) -> np.ndarray:
    """Return a noised mean, drawn towards zero by as much as its noise makes likely: post-processing.

    References:
        James, Stein: Estimation with quadratic loss, 1961 (their estimator's positive part).
    """
    finite = np.clip(mean, -1e9, 1e9)
    length = float(finite @ finite)
    shrunk: np.ndarray = finite * max(0.0, 1 - len(mean) * std**2 / max(length, 1e-300))
    return shrunk


def _in_unit_ball(mean: np.ndarray) -> np.ndarray:
    """Return a noised mean of vectors of norm at most 1, with a norm of at most 1 again."""
    within: np.ndarray = mean / max(1.0, float(np.linalg.norm(mean)))
    return within

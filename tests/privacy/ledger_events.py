"""Events whose cost is exact and quick to compute, for ledgers that are filled, killed and fought over."""

from cadp_fl.privacy.events import GaussianMoments, GaussianSum, LatentLaplace, PoissonGaussian, Unprotected
from cadp_fl.privacy.plan import Allowance

LAPLACE = LatentLaplace(stage="release", clip_norm=1.0, noise_scale=4.0)
"""One release of epsilon 1/2."""

STEP = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=8.0, sampling_rate=1.0, steps=1)
MOMENTS = GaussianMoments(
    stage="moments",
    noise_std=40.0,
    clip_norm=4.5,
    count_weight=0.25,
    sum_weight=1.0,
    shared_weight=1.0,
    class_weight=1.0,
)
CENTRE = GaussianSum(stage="moments", clip_norm=8.0, noise_std=2000.0)
WEIGHTS = Unprotected(stage="classifier", what="weights of a classifier")
LIMIT = Allowance(2.0, 1e-5)

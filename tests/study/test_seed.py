"""What a seed repeats on every processor; what is trained is not among it."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import torch

from cadp_fl.classifier.models import build_classifier
from cadp_fl.config import load_study
from cadp_fl.data.partition import deal
from cadp_fl.data.sources import load_source
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.methods.base import plan_of
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.claims import claim_of
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.weights import get_weights, structure_sha256
from tests.conftest import ROOT

OTHER_PROCESSOR = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Prescott",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
}
"""What makes the libraries compute as they do on a processor with fewer instructions."""


def derived():
    """Return what a seed gives: what has to be the same to the bit, and floats."""
    study = load_study(ROOT / "configs" / "quickstart.yaml")
    source = load_source(study.data)
    sites = deal(source, study.sites.count, study.sites.partition, study.data.test_fraction, seed=study.seed)
    classes, shape = len(source.schema.classes), source.schema.shape
    flow = ConditionalFlow(
        study.flow.cold().model_copy(update={"permutation": "soft"}), shape, classes, seed=study.seed
    )
    noise, like = NoiseSource.from_seed(study.seed), torch.zeros(1, dtype=torch.float64)
    plans = {method.name: plan_of(method, study) for method in build_methods(study)}
    same = {
        "split": [
            hashlib.sha256(part.images.tobytes()).hexdigest() for site in sites for part in (site.train, site.test)
        ],
        "fixed parts": structure_sha256(flow),
        "plans": [plan.to_json() for plan in plans.values()],
        "epsilons": [repr(claim_of(plan).epsilon) for plan in plans.values()],
        "draws": noise.child("draws").rounded_normal((500,), 40.0, like).tolist(),
        "order": noise.child("order").permutation(500).tolist(),
    }
    floats = {
        "flow": get_weights(flow),
        "classifier": get_weights(build_classifier(study.classifier, shape, classes, seed=study.seed)),
        "noise": {"normal": noise.child("normal").normal((500,), 2.0, like).numpy()},
    }
    return same, {
        f"{kind} {name}": array.reshape(-1)[:500].tolist()
        for kind, each in floats.items()
        for name, array in each.items()
    }


def test_a_seed_gives_the_same_on_every_processor_before_anything_is_trained():
    code = "import json; from tests.study.test_seed import derived; print(json.dumps(derived()))"
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=os.environ | OTHER_PROCESSOR,
        capture_output=True,
        text=True,
        check=True,
    )
    same, floats = json.loads(json.dumps(derived()))
    same_there, floats_there = json.loads(finished.stdout)
    assert same_there == same
    assert floats_there.keys() == floats.keys()
    for name, values in floats.items():
        np.testing.assert_allclose(floats_there[name], values, rtol=1e-6, atol=1e-7, err_msg=name)

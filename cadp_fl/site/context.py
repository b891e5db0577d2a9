"""What a site's answers are made with: its records, its ledger and policy at work, its entropy source, its device."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from cadp_fl.classifier.models import build_classifier
from cadp_fl.config import ClassifierConfig, FlowConfig
from cadp_fl.data.codec import Codec, codec_of, input_shape
from cadp_fl.data.partition import SiteData
from cadp_fl.data.units import Units
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.site.mode import Mode
from cadp_fl.site.privacy_filter import PrivacyFilter
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import DIRECTIONS, MOMENTS
from cadp_fl.weights import set_weights

__all__ = ["SiteContext"]


@dataclass(frozen=True)
class SiteContext:
    """What a site computes with.

    Attributes:
        name: pseudonym of the site.
        data: training and test records.
        units: of the training records.
        test_units: of the test records.
        privacy_filter: holds plans against the policy, and writes events down before they are computed.
        noise: the site's entropy source; every event draws from a child of its own.
        device: where to compute.
        mode: of the site; figures of training records leave in a simulation alone.
    """

    name: str
    data: SiteData
    units: Units
    test_units: Units
    privacy_filter: PrivacyFilter
    noise: NoiseSource
    device: torch.device
    mode: Mode

    @property
    def codec(self) -> Codec:
        """How records become what is computed with."""
        return codec_of(self.data.train.schema)

    def flow(self, config: FlowConfig, seed: int, request: Request) -> ConditionalFlow:
        """Return the flow of a request, with the weights that came with it."""
        flow = self.new_flow(config, seed)
        set_weights(
            flow,
            {
                name: array
                for name, array in request.arrays.items()
                if not name.startswith(MOMENTS) and name != DIRECTIONS
            },
        )
        return flow.to(self.device)

    def new_flow(self, config: FlowConfig, seed: int) -> ConditionalFlow:
        """Return a flow before anything was learned, on the CPU."""
        schema = self.data.train.schema
        return ConditionalFlow(config, input_shape(schema), schema.conditions, seed=seed)

    def classifier(self, config: ClassifierConfig, seed: int) -> torch.nn.Module:
        """Return a new classifier, with the initial weights of a seed."""
        schema = self.data.train.schema
        return build_classifier(config, input_shape(schema), len(schema.classes), seed=seed).to(self.device)

    def shuffler(self, seed: int, *purpose: str | int, device: torch.device | None = None) -> torch.Generator:
        """Return the generator that shuffles and dequantizes for a purpose. Not a source of privacy."""
        name = repr((seed, self.name, purpose)).encode()
        state = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
        return torch.Generator(device=device or "cpu").manual_seed(state)

    def simulation_only(self, **figures: float) -> dict[str, Any]:
        """Return figures of training records below the key that only a simulation has."""
        return {"simulation_only": figures} if not self.mode.is_real else {}

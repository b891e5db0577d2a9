"""How many records of each class a site has: declared public, or released with noise and kept as a lower bound."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cadp_fl.config import PolicyConfig
from cadp_fl.json_text import parse_json
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.policy import check_class_counts
from cadp_fl.site.context import SiteContext
from cadp_fl.site.protocol import Request

__all__ = ["COUNT_DOUBT", "ClassCounts"]

COUNT_DOUBT = 3.0
"""Standard deviations that noised counts are lowered by, before a minimum is held against them."""


class ClassCounts:
    """What may be known of a site's classes.

    Args:
        context: what the site computes with.
        policy: says whether labels are public.
        folder: where noised counts are remembered.
    """

    def __init__(self, context: SiteContext, policy: PolicyConfig, folder: Path) -> None:
        self._context, self._policy, self._folder = context, policy, folder

    def public(self) -> dict[str, int] | None:
        """Return how many records of each class are contributed, by class that there are any of; None if covered."""
        if self._policy.labels == "covered":
            return None
        train = self._context.data.train
        counts = zip(train.schema.classes, self._context.units.class_counts(train), strict=True)
        return {name: int(count) for name, count in counts if count}

    def check_public(self) -> None:
        """Check that a release has enough units of every class, as far as counts are public or declared public.

        Raises:
            CohortError: it has not, whatever would be spent on it.
        """
        public = self.public()
        if public is not None or self._policy.class_counts is not None:
            check_class_counts(self._policy, public, self._context.data.train.schema.classes)

    def remember(self, request: Request, method: str, noised: np.ndarray, noise_std: float) -> None:
        """Write down how many contributed records each class almost surely has at least.

        Of several answers the smallest stands: one of many that are noisy enough would else show any number.
        """
        least = dict(
            zip(self._context.data.train.schema.classes, (noised - COUNT_DOUBT * noise_std).tolist(), strict=True)
        )
        path = self._file(request, method)
        before = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else least
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as file:
            smallest = {name: min(count, before[name]) for name, count in least.items()}
            file.write_text(json.dumps(smallest), encoding="utf-8")

    def known(self, request: Request, method: str) -> Mapping[str, float] | None:
        """Return how many records of each class there are, or by noised counts almost surely are at least.

        The noise of counts is the server's choice: taken at their word, large noise would meet any minimum by chance.
        """
        public, noised = self.public(), self._file(request, method)
        if public is not None:
            return public
        return parse_json(noised.read_text(encoding="utf-8")) if noised.is_file() else None

    def _file(self, request: Request, method: str) -> Path:
        name = hashlib.sha256(f"{request.run}/{method}".encode()).hexdigest()[:16]
        return self._folder / f"counts-{name}.json"

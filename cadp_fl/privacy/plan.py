"""A plan: what one method may spend at one site, fixed and reserved before its first event.

Privacy loss composes within a plan, since it was fixed in advance. What is claimed is the whole plan, even if a run
stops early: a crash never refunds.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from cadp_fl.config.names import NAME, Labels, Unit
from cadp_fl.privacy.accounting import epsilon_of, has_delta
from cadp_fl.privacy.events import Event, events_from_json
from cadp_fl.privacy.losses import Relation

__all__ = [
    "NOTHING",
    "Against",
    "Allowance",
    "Conditions",
    "Noise",
    "Plan",
    "Split",
    "against",
    "kept_by",
]

Split = Literal["train", "test"]
"""Whose records something is computed from: a site's training units, or its test units, which are others."""

Noise = Literal["entropy", "seeded", "unrecorded"]
"""Where noise comes from. An entry that was written before ledgers recorded it says `unrecorded`."""

Against = Literal["server", "recipients"]
"""Whom a claim protects against: the server, and so everyone; or those alone who see sums over sites, and nothing that
an aggregator adds up to them, so that the aggregator is trusted."""


def against(events: Iterable[Event]) -> Against:
    """Return whom what events cost holds against: the recipients alone if a site adds a share of some noise only."""
    return "recipients" if any(event.sharers > 1 for event in events) else "server"


@dataclass(frozen=True)
class Allowance:
    """An amount of privacy loss, under replace-one."""

    epsilon: float
    delta: float


NOTHING = Allowance(0.0, 0.0)


@dataclass(frozen=True)
class Conditions:
    """What the wording of a plan's claim rests on beside its events, as it is at the site when the plan is reserved.

    The site writes this into its ledger by itself, whatever a server sends: a claim made later, under a policy or
    records that changed, still knows it.

    Attributes:
        noise: where the site's noise comes from.
        classes: names of the classes that a record's label is one of.
        attributes: names of the records' attributes.
    """

    noise: Noise = "entropy"
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the conditions as plain JSON values."""
        return {"noise": self.noise, "classes": list(self.classes), "attributes": list(self.attributes)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Conditions":
        """Return the conditions that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: they are none.
        """
        noise, classes, attributes = tree["noise"], tuple(tree["classes"]), tuple(tree["attributes"])
        if noise not in get_args(Noise) or not all(isinstance(name, str) for name in (*classes, *attributes)):
            raise ValueError(f"conditions name noise, classes and attributes. Found {noise!r:.40}.")
        return cls(noise, classes, attributes)


def kept_by(labels: Labels, conditions: Conditions) -> frozenset[str]:
    """Return what a neighbouring data set keeps of a replaced record, in words: nothing where labels are covered.

    A claim that keeps less is stronger. Labels of other classes are another thing to keep.
    """
    if labels == "covered":
        return frozenset()
    classes = ", ".join(name.replace(",", r"\,") for name in conditions.classes)
    return frozenset({f"labels ({classes})", *(f"attribute '{name}'" for name in conditions.attributes)})


@dataclass(frozen=True)
class Plan:
    """What one method may spend at one site.

    Attributes:
        method: name of the method.
        events: every event of the method, in order.
        delta: the delta at which epsilon is claimed, that of retries included; 0 only where no event has one.
        unit: what one neighbouring data set may change.
        labels: whether a record's label is public by declaration, or covered by the claim.
        split: whose records the events are computed from: training units, or test units, which are others.
        retry: set aside for events whose result a crash lost; what they cost adds to that of the events.
        run: id of the run that the method is a part of; empty in a simulation, whose ledger knows only one.
        conditions: what else the claim rests on, as the site found it.
    """

    method: str
    events: tuple[Event, ...]
    delta: float
    unit: Unit = "record"
    labels: Labels = "public"
    split: Split = "train"
    retry: Allowance = field(default=NOTHING)
    run: str = ""
    conditions: Conditions = field(default=Conditions())

    @property
    def keeps(self) -> frozenset[str]:
        """What the claim does not cover of a replaced record, in words. Claims on test units cover labels too."""
        return frozenset() if self.split == "test" else kept_by(self.labels, self.conditions)

    @property
    def key(self) -> str:
        """What names the plan among all others of its ledger. No method's name holds a colon: none ends like this.

        A run's name is the server's choice: were the key of test units `<run>/<method>/test`, a method `test` of a run
        `<run>/<method>` would be charged to it, and training units with it.
        """
        return "/".join([*([self.run] if self.run else []), self.method]) + (":test" if self.split == "test" else "")

    @property
    def against(self) -> Against:
        """Whom the plan's epsilon holds against."""
        return against(self.events)

    @property
    def sharers(self) -> int:
        """K, the sites whose noise the plan's epsilon rests on; 1 where the site adds all of its noise."""
        return max((event.sharers for event in self.events), default=1)

    @property
    def releases_latents(self) -> bool:
        """Whether the plan releases records through a flow."""
        return any(event.releases_latents for event in self.events)

    def epsilon(self, relation: Relation = Relation.REPLACE_ONE) -> float:
        """Return the epsilon of all events together, and of retries; infinite if one is unprotected."""
        return epsilon_of(self.events, self.delta - self.retry.delta, relation) + self.retry.epsilon

    def protected(self) -> "Plan":
        """Return the plan without what it leaves unprotected or declares public."""
        events = tuple(event for event in self.events if event.is_protected)
        return Plan(**{**vars(self), "events": events})

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        fields = {"units" if name == "split" else name: value for name, value in vars(self).items()}
        return {
            **fields,
            "events": [event.model_dump() for event in self.events],
            "retry": vars(self.retry),
            "conditions": self.conditions.to_json(),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Plan":
        """Return the plan that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is no plan.
        """
        aside = tree.get("retry", vars(NOTHING))
        delta, retry = _number(tree["delta"]), Allowance(_number(aside["epsilon"]), _number(aside["delta"]))
        if not re.fullmatch(NAME, str(tree["method"])):
            raise ValueError(f"a method's name is up to 40 letters, digits and hyphens. Found {tree['method']!r:.60}.")
        if not 0 <= delta < 1:
            raise ValueError(f"delta is between 0 and 1. Found {delta}.")
        if not (0 <= retry.delta < (delta or math.ulp(0.0)) and 0 <= retry.epsilon < math.inf):
            raise ValueError(f"a retry reserve is a part of the plan. Found {retry}.")
        unit, labels, split = tree.get("unit", "record"), tree.get("labels", "public"), tree.get("units", "train")
        if unit not in get_args(Unit) or labels not in get_args(Labels) or split not in get_args(Split):
            raise ValueError(f"a plan says what it protects. Found {unit!r}, {labels!r}, {split!r}.")
        events = events_from_json(tree["events"])
        if delta == 0 and has_delta(events):
            raise ValueError("Gaussian noise has a delta. Found 0.")
        conditions = Conditions.from_json(tree["conditions"]) if "conditions" in tree else Conditions("unrecorded")
        return cls(
            method=str(tree["method"]),
            events=events,
            delta=delta,
            unit=unit,
            labels=labels,
            split=split,
            retry=retry,
            run=str(tree.get("run", "")),
            conditions=conditions,
        )


def _number(value: Any) -> float:
    """Return a JSON number as a float; one beyond floats, and anything else, raises ValueError."""
    if not isinstance(value, (int, float)) or abs(value) >= 1e300:
        raise ValueError("a number is one that a float holds")
    return float(value)

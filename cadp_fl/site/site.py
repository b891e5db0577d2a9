"""Site: the one object that touches private records.

It answers requests. Whatever it computes from training records and lets go is an event in its ledger first; what is
not (losses, above all) stays, except in a simulation. `training` has what is trained, `releasing` what is released.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cadp_fl
from cadp_fl.config import PolicyConfig, parse
from cadp_fl.data.codec import input_shape
from cadp_fl.data.fingerprint import Fingerprint
from cadp_fl.data.partition import SiteData
from cadp_fl.data.units import Units
from cadp_fl.errors import DataError, ExchangeError, PrivacyError
from cadp_fl.features.front_end import front_end_of
from cadp_fl.flow.bayes import FlowBayes
from cadp_fl.privacy.accounting import check_workable
from cadp_fl.privacy.claims import EXACT_TEST_RESULTS, LOCAL_TEST_RESULTS
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import GaussianHistogram, GaussianMoments
from cadp_fl.privacy.histogram import noised_counts
from cadp_fl.privacy.ledger import Ledger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Conditions, Plan
from cadp_fl.privacy.policy import open_policy
from cadp_fl.site.class_counts import ClassCounts
from cadp_fl.site.context import SiteContext
from cadp_fl.site.description import Description
from cadp_fl.site.evaluation import exact_counts, noised_evaluation
from cadp_fl.site.mode import Mode
from cadp_fl.site.moments import GivenMoments, check_moments, noised_moments
from cadp_fl.site.privacy_filter import PrivacyFilter
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.register import register_sides
from cadp_fl.site.releases import Releases
from cadp_fl.site.reply_store import ReplyStore
from cadp_fl.site.requests import (
    CountRequest,
    DescribeRequest,
    EvaluateRequest,
    LocalRequest,
    MomentsRequest,
    ReserveRequest,
)
from cadp_fl.site.training import Training
from cadp_fl.weights import set_weights

__all__ = ["Site"]


_SPENDING = (
    "count",
    "moments",
    "release",
    "train_flow",
    "train_private_flow",
    "train_classifier",
    "train_local",
    "evaluate",
)
"""Actions whose answers are kept, so that none is paid for twice."""


MAX_PLAN_CHARACTERS = 1 << 16
"""Of a plan as JSON, which a ledger keeps for good, whatever it cost."""


class Site:
    """One hospital: its records, its ledger, its entropy source.

    Args:
        name: pseudonym of the site.
        data: training and test records.
        ledger: where events are written down before they are computed.
        noise: the site's entropy source; every event draws from a child of its own.
        device: where to compute.
        outbox: folder of releases that are ready to be fetched.
        simulation: whether figures of training records may leave, and exact test results whatever the policy.
        policy: what the site allows; a simulation's site allows all without one.
        answers: keeps what was answered, where the ledger is durable.
        orders: folder for which record each released one is of, in a simulation that compares them.
        measures: whether what a release keeps of its records is measured when it is made, and kept in the outbox for
            the steward's review.

    Raises:
        PrivacyError: a real site has no policy, or an order would be kept.
        LedgerError: the ledger is another population's.
        DataError: the unit is a patient, and the records do not say whose they are; or one is trained and tested on.
    """

    def __init__(
        self,
        name: str,
        data: SiteData,
        *,
        ledger: Ledger,
        noise: NoiseSource,
        device: torch.device,
        outbox: Path,
        simulation: bool,
        policy: PolicyConfig | None = None,
        answers: ReplyStore | None = None,
        orders: Path | None = None,
        measures: bool = False,
    ) -> None:
        if policy is None and not simulation:
            raise PrivacyError("A real site has a policy. Found none; write policy.yaml.")
        if orders is not None and not simulation:
            raise PrivacyError("A real site forgets the order of its releases. Found a folder to keep it in.")
        self.name = name
        self._policy = policy = policy or open_policy()
        self.ledger, self._stored = ledger, answers
        self._objection, self._is_registered = "", False
        mode = Mode.of(simulation=simulation, ledger=ledger)
        unit, m = policy.unit, policy.records_per_unit
        ledger.check_terms(policy.population, unit, m)
        _check_disjoint(data)
        of_training, of_test = Units.of(data.train, unit, m), Units.of(data.test, unit, m)
        privacy_filter = PrivacyFilter(
            ledger,
            policy,
            units=len(of_training),
            test_units=len(of_test),
            conditions=Conditions(noise.kind, data.train.schema.classes, data.train.schema.attributes),
            mode=mode,
            class_units=of_training.class_counts(data.train).tolist(),
        )
        self.context = context = SiteContext(
            name=name,
            data=data,
            units=of_training,
            test_units=of_test,
            privacy_filter=privacy_filter,
            noise=noise,
            device=device,
            mode=mode,
        )
        self.counts = ClassCounts(context, policy, outbox)
        self._training = training = Training(context)
        self._given = GivenMoments(outbox)
        self.releases = releasing = Releases(context, self.counts, self._given, policy, outbox, orders, measures)
        self._answers: Mapping[str, Callable[[Request], Reply]] = {
            "describe": self._describe,
            "reserve": self._reserve,
            "train_flow": training.flow,
            "moments": self._moments,
            "train_private_flow": training.private_flow,
            "count": self._count,
            "release": releasing.release,
            "fetch": releasing.fetch,
            "train_classifier": training.classifier,
            "evaluate": self._evaluate,
            "train_local": self._train_local,
            "account": self._account,
        }

    def call(self, request: Request) -> Reply:
        """Answer a request. One that has an id is answered once, and the same again if it comes again.

        Raises:
            CadpError: the request is malformed, breaks a rule, or cannot be met.
        """
        return self.answered_before(request) or self.answer(request)

    def answered_before(self, request: Request) -> Reply | None:
        """Return what was answered to a request that spends, or None: it was not answered before, or is not kept.

        Raises:
            CadpError: it lacks an id, or another request had that id.
        """
        if self._stored is None or request.action not in _SPENDING:
            return None
        if not request.id:
            raise ExchangeError(
                f"A request that spends has an id, under which its answer is kept. '{request.action}' has none; add it."
            )
        known = self.ledger.answered(request.id, request.sha256())
        return None if known is None else self._stored.load(request.id, known)

    def answer(self, request: Request) -> Reply:
        """Answer a request that was not answered before, and keep the answer before it is returned.

        Raises:
            CadpError: the request is malformed, breaks a rule, or cannot be met.
        """
        if request.action not in self._answers:
            raise ExchangeError(f"A site offers: {', '.join(self._answers)}. Found '{request.action}'.")
        reply = self._answers[request.action](request)
        if self._stored is not None and request.action in _SPENDING:
            self.ledger.store(request.id, self._stored.store(request.id, reply))
        return reply

    def register_sides(self, *, begins: bool = False) -> None:
        """Write down on which side, training or test, everyone is, where the ledger is durable and has plans.

        Args:
            begins: whether a plan is about to be reserved.

        Raises:
            DataError: somebody is on another side than before.
            LedgerError: it cannot be written.
        """
        if isinstance(self.ledger, DurableLedger) and not self._is_registered:
            register_sides(self.ledger, self.context.data, begins=begins)
            self._is_registered = begins

    @property
    def objection(self) -> str:
        """Why the site would refuse the plans that it was asked about last, for its own log; empty if it would not."""
        return self._objection

    def _describe(self, request: Request) -> Reply:
        """Answer with what is public of the site; and if plans came along, with the code of a refusal of them, if any.

        A server that knows of a refusal at one site reserves nothing at the others.
        """
        train, policy = self.context.data.train, self._policy
        counts = self.counts.public()
        if counts is not None:
            self.context.privacy_filter.declare_class_counts()
        description = Description(
            site=self.name,
            library=cadp_fl.__version__,
            dataset=train.schema,
            unit=policy.unit,
            records_per_unit=policy.records_per_unit,
            labels=policy.labels,
            train=len(self.context.units),
            test=len(self.context.test_units),
            class_counts=counts,
            noise=self.context.noise.kind,
        )
        content = description.model_dump(mode="json")
        if not self.context.mode.is_real:  # a real site gives out nothing of its records that is not public
            content["simulation_only"] = {"records": Fingerprint.of(self.context.data).model_dump(mode="json")}
        self._objection, plans = "", _plans_in(parse(DescribeRequest, request.settings).plans, request.run)
        try:
            if plans:
                self.context.privacy_filter.check(*plans)
        except PrivacyError as error:
            self._objection = str(error)
            content["refuses"] = error.code
        return Reply(content)

    def _reserve(self, request: Request) -> Reply:
        plans = _plans_in(parse(ReserveRequest, request.settings).plans, request.run)
        if len({plan.split for plan in plans}) < len(plans) or len({plan.method for plan in plans}) > 1:
            raise ExchangeError("A method's plans are one on training units and one on test units. Found others.")
        self.context.privacy_filter.check(*plans)
        if any(event.stage == "release" for plan in plans for event in plan.events):
            self.counts.check_public()
        self.register_sides(begins=True)
        self.context.privacy_filter.reserve(*plans)
        return Reply({"unprotected_before": self.context.privacy_filter.unprotected_before(request.run)})

    def _count(self, request: Request) -> Reply:
        """Answer with the noised number of contributed training records of each class.

        Counts are integers and so is rounded noise: what is released is a rounded Gaussian mechanism, without low bits.
        """
        asked = parse(CountRequest, request.settings)
        self.context.privacy_filter.plan(request, asked.method)
        if asked.event.histograms != 1 or asked.event.times != 1:
            raise ExchangeError("Classes are counted once, in one histogram. Found another event; ask for that.")
        event_id = self.context.privacy_filter.spend(request, asked.method, asked.event)
        counts = self.context.units.class_counts(self.context.data.train)
        noised = noised_counts(counts, asked.event, noise=self.context.noise.child("counts", event_id))
        counts_by_class = dict(
            zip(self.context.data.train.schema.classes, noised.astype(np.int64).tolist(), strict=True)
        )
        self.counts.remember(request, asked.method, noised, asked.event.noise_std)
        return Reply({"class_counts": counts_by_class})

    def _moments(self, request: Request) -> Reply:
        """Answer with the noised sum of the records' features, or with their noised moments around a centre."""
        asked = parse(MomentsRequest, request.settings)
        schema, event = self.context.data.train.schema, asked.event
        if schema.attributes:
            raise ExchangeError("Moments are of classes, and these records have attributes; leave the attributes out.")
        front = front_end_of(asked.front_end, input_shape(schema))
        check_moments(front, len(schema.classes), event)
        centre = request.arrays.get("centre")
        if isinstance(event, GaussianMoments) and not _is_vector(centre, front.dims):
            raise ExchangeError(
                f"Moments are taken around a centre, {front.dims} numbers of float64. Found no such array; send it."
            )
        event_id = self.context.privacy_filter.spend(request, asked.method, event)
        noise = self.context.noise.child("moments", event_id)
        released = noised_moments(front, self.context.data.train, self.context.units, event, centre, noise=noise)
        if isinstance(event, GaussianMoments) and "counts" in released:
            self.counts.remember(request, asked.method, released["counts"], event.part_stds["counts"])
        if centre is not None and self.context.mode.is_real:
            self._given.remember(
                self.context.privacy_filter.plan(request, asked.method).key, asked.front_end, centre, released
            )
        return Reply({}, released)

    def _evaluate(self, request: Request) -> Reply:
        asked = parse(EvaluateRequest, request.settings)
        self.context.privacy_filter.plan(request, asked.method, "test")
        self.context.privacy_filter.check_evaluation(asked.event, len(self.context.data.test.schema.classes))
        model = self._evaluated(asked)
        set_weights(model, request.arrays)
        event_id = self.context.privacy_filter.spend(
            request, asked.method, asked.event or EXACT_TEST_RESULTS, split="test"
        )
        return self._evaluation_of(model, asked.event, event_id)

    def _train_local(self, request: Request) -> Reply:
        """Train a new classifier on the site's own records, and answer with its test results; it stays here."""
        asked, context = parse(LocalRequest, request.settings), self.context
        context.privacy_filter.check_evaluation(asked.evaluation, len(context.data.test.schema.classes))
        context.privacy_filter.plan(request, asked.method)
        model, method = context.classifier(asked.classifier, asked.seed), asked.method
        context.privacy_filter.spend(
            request, method, LOCAL_TEST_RESULTS
        )  # a function of training records, noised or not
        event_id = context.privacy_filter.spend(request, method, asked.evaluation or EXACT_TEST_RESULTS, split="test")
        self._training.local(model, asked)
        return self._evaluation_of(model, asked.evaluation, event_id)

    def _evaluation_of(self, model: torch.nn.Module, event: GaussianHistogram | None, event_id: str) -> Reply:
        """Answer with a classifier's confusion counts and score histograms: exact ones, or with the noise of an event.

        What is exact is of all test records; what is noised, of those that each test unit contributes.
        """
        test = self.context.data.test
        if event is None:
            return Reply({}, exact_counts(model, test))
        noise = self.context.noise.child("evaluation", event_id)
        return Reply({}, noised_evaluation(model, test, self.context.test_units, event, noise=noise))

    def _account(self, request: Request) -> Reply:
        return Reply(self.context.privacy_filter.account(request.run))

    def _evaluated(self, asked: EvaluateRequest) -> torch.nn.Module:
        """Return what is evaluated, a classifier or a flow's Bayes rule, before its weights."""
        if asked.flow is None:
            assert asked.classifier is not None, "a request names one of the two"
            return self.context.classifier(asked.classifier, asked.seed)
        return FlowBayes.of(asked.flow, self.context.data.train.schema, seed=asked.seed, ridge=asked.ridge).to(
            self.context.device
        )


def _plans_in(trees: Sequence[Mapping[str, Any]], run: str) -> list[Plan]:
    """Return the plans that a request of a run holds.

    Raises:
        ExchangeError: it holds something else, or a plan that is too long.
        BudgetError: one takes too long to work out.
    """
    try:
        plans = [replace(Plan.from_json(tree), run=run) for tree in trees]
    except (KeyError, TypeError, ValueError) as error:
        raise ExchangeError("A plan is a method, events and a delta. Found something else.") from error
    for plan in plans:
        if (length := len(json.dumps(plan.to_json()))) > MAX_PLAN_CHARACTERS:
            raise ExchangeError(
                f"A plan has at most {MAX_PLAN_CHARACTERS} characters of JSON. One has {length}; sum up what is alike."
            )
    check_workable(*(plan.events for plan in plans))
    return plans


def _is_vector(array: np.ndarray | None, dims: int) -> bool:
    return array is not None and array.shape == (dims,) and array.dtype == np.float64


def _check_disjoint(data: SiteData) -> None:
    """Check that no patient or record is both trained and tested on: what is given out about test records is apart.

    Raises:
        DataError: one is.
    """
    pairs = {"patient": (data.train.patients, data.test.patients), "record": (data.train.ids, data.test.ids)}
    for who, (trained, tested) in pairs.items():
        if trained is not None and tested is not None and len(np.intersect1d(trained, tested)):
            raise DataError(
                f"A {who} is trained on or tested on, not both. Some are both; move each to one of the two."
            )

"""Site: the one object that touches private records.

It answers requests. Whatever it computes from training records and lets go is an event in its ledger first; what is
not (losses, above all) stays, except in a simulation.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cadp_fl
from cadp_fl.classifier.fixed import features_of, split_features
from cadp_fl.classifier.models import build_classifier
from cadp_fl.classifier.training import train_epochs
from cadp_fl.config import ClassifierConfig, FlowConfig, PolicyConfig, parse
from cadp_fl.data.partition import SiteData
from cadp_fl.data.units import Units
from cadp_fl.errors import DataError, ExchangeError, PrivacyError
from cadp_fl.features.front_end import FrontEnd
from cadp_fl.flow.bayes import FlowBayes
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.private_training import train_flow_privately
from cadp_fl.flow.storage import flow_sha256
from cadp_fl.flow.training import Progress, train_flow
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.accounting import GaussianHistogram, GaussianMoments, Unprotected
from cadp_fl.privacy.claims import (
    CLASSIFIER_WEIGHTS,
    EXACT_TEST_RESULTS,
    FLOW_WEIGHTS,
    LOCAL_TEST_RESULTS,
    relation_of,
)
from cadp_fl.privacy.dpsgd import cross_entropy_of, train_dp_sgd
from cadp_fl.privacy.histogram import noised_counts
from cadp_fl.privacy.ledger import Ledger
from cadp_fl.privacy.mechanisms import mechanism_of
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.policy import (
    check_class_counts,
    open_policy,
)
from cadp_fl.release.bundle import open_bundle, write_bundle
from cadp_fl.release.manifest import ReleaseClaim, ReleaseHead, manifest_to_json
from cadp_fl.release.privatize import ReleaseSettings, check_release, privatize
from cadp_fl.site.answers import Answers
from cadp_fl.site.description import Description
from cadp_fl.site.evaluation import exact_counts, told_with_noise
from cadp_fl.site.moments import check_moments, told_moments
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import (
    ClassifierRequest,
    CountRequest,
    DpSgdTraining,
    EpochTraining,
    EvaluateRequest,
    FetchRequest,
    FlowRequest,
    LocalRequest,
    MomentsRequest,
    PrivateFlowRequest,
    ReleaseRequest,
    ReserveRequest,
)
from cadp_fl.site.review import Review
from cadp_fl.site.spending import Spending
from cadp_fl.weights import get_weights, set_weights, structure_sha256

__all__ = ["COUNT_DOUBT", "Site"]


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


COUNT_DOUBT = 3.0
"""Standard deviations that noised counts are lowered by, before a minimum is held against them."""


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

    Raises:
        PrivacyError: a real site has no policy.
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
        answers: Answers | None = None,
    ) -> None:
        if policy is None and not simulation:
            raise PrivacyError("A real site has a policy. Found none; write policy.yaml.")
        self._policy = policy or open_policy()
        self._stored = answers
        self.name = name
        self._data = data
        self._ledger = ledger
        self._noise = noise
        self._device = device
        self._outbox = outbox
        self._simulation = simulation
        ledger.check_terms(self._policy.population, self._policy.unit, self._policy.records_per_unit)
        _check_disjoint(data)
        self._units = Units.of(data.train, self._policy.unit, self._policy.records_per_unit)
        self._test_units = Units.of(data.test, self._policy.unit, self._policy.records_per_unit)
        self._spending = Spending(
            ledger,
            self._policy,
            units=len(self._units),
            test_units=len(self._test_units),
            noise=noise.kind,
            simulation=simulation,
        )
        self._answers: Mapping[str, Callable[[Request], Reply]] = {
            "describe": self._describe,
            "reserve": self._reserve,
            "train_flow": self._train_flow,
            "moments": self._moments,
            "train_private_flow": self._train_private_flow,
            "count": self._count,
            "release": self._release,
            "fetch": self._fetch,
            "train_classifier": self._train_classifier,
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
        known = self._ledger.answered(request.id, request.sha256())
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
            self._ledger.store(request.id, self._stored.store(request.id, reply))
        return reply

    def _describe(self, _request: Request) -> Reply:
        train, policy = self._data.train, self._policy
        description = Description(
            site=self.name,
            library=cadp_fl.__version__,
            dataset=train.schema,
            unit=policy.unit,
            records_per_unit=policy.records_per_unit,
            labels=policy.labels,
            train=len(self._units),
            test=len(self._test_units),
            class_counts=self._public_counts(),
            noise=self._noise.kind,
        )
        return Reply(description.model_dump(mode="json"))

    def _public_counts(self) -> dict[str, int] | None:
        """Return how many records of each class are contributed, by class that there are any of; None if covered."""
        if self._policy.labels == "covered":
            return None
        train = self._data.train
        counts = zip(train.schema.classes, self._units.class_counts(train), strict=True)
        return {name: int(count) for name, count in counts if count}

    def _reserve(self, request: Request) -> Reply:
        asked = parse(ReserveRequest, request.settings)
        try:
            plan = Plan.from_json(asked.plan)
        except (KeyError, TypeError, ValueError) as error:
            raise ExchangeError("A plan is a method, events and a delta. Found something else.") from error
        self._spending.reserve(replace(plan, run=request.run))
        return Reply()

    def _count(self, request: Request) -> Reply:
        """Answer with the noised number of contributed training records of each class.

        Counts are integers and so is rounded noise: what is told is a rounded Gaussian mechanism, without low bits.
        """
        asked = parse(CountRequest, request.settings)
        self._spending.plan(request, asked.method)
        if asked.event.histograms != 1 or asked.event.times != 1:
            raise ExchangeError("Classes are counted once, in one histogram. Found another event; ask for that.")
        event_id = self._spending.spend(request, asked.method, asked.event)
        counts = self._units.class_counts(self._data.train)
        noised = noised_counts(counts, asked.event, noise=self._noise.child("counts", event_id))
        told = dict(zip(self._data.train.schema.classes, noised.astype(np.int64).tolist(), strict=True))
        self._remember_counts(request, asked.method, noised, asked.event.noise_std)
        return Reply({"class_counts": told})

    def _remember_counts(self, request: Request, method: str, noised: np.ndarray, noise_std: float) -> None:
        """Write down how many contributed records each class almost surely has at least.

        Of several answers the smallest stands: one of many that are noisy enough would else show any number.
        """
        least = dict(zip(self._data.train.schema.classes, (noised - COUNT_DOUBT * noise_std).tolist(), strict=True))
        path = self._counts_file(request, method)
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else least
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as file:
            smallest = {name: min(count, before[name]) for name, count in least.items()}
            file.write_text(json.dumps(smallest), encoding="utf-8")

    def _counts_file(self, request: Request, method: str) -> Path:
        name = hashlib.sha256(f"{request.run}/{method}".encode()).hexdigest()[:16]
        return self._outbox / f"counts-{name}.json"

    def _known_counts(self, request: Request, method: str) -> Mapping[str, float] | None:
        """Return how many records of each class there are, or by noised counts almost surely are at least.

        The noise of counts is the server's choice: taken at their word, large noise would meet any minimum by chance.
        """
        public, noised = self._public_counts(), self._counts_file(request, method)
        if public is not None:
            return public
        return json.loads(noised.read_text(encoding="utf-8")) if noised.is_file() else None

    def _train_flow(self, request: Request) -> Reply:
        asked = parse(FlowRequest, request.settings)
        train = self._data.train
        flow = self._flow(asked.flow, asked.seed, request)
        frozen = flow.frozen_names(asked.freeze)
        self._spending.spend(request, asked.method, FLOW_WEIGHTS)
        start = time.perf_counter()
        loss = train_flow(
            flow,
            torch.from_numpy(train.images).to(self._device),
            torch.from_numpy(train.condition).to(self._device),
            asked.flow.training,
            levels=train.schema.levels,
            progress=Progress(asked.round - 1, asked.flow.training.rounds),
            generator=self._shuffler(asked.seed, asked.method, "flow", asked.round, device=self._device),
            frozen=frozen,
        )
        trained = {name: array for name, array in get_weights(flow).items() if name not in frozen}
        figures = self._simulation_only(bits_per_dim=loss, seconds=time.perf_counter() - start)
        return Reply({"structure": structure_sha256(flow), **figures}, trained)

    def _moments(self, request: Request) -> Reply:
        """Answer with the noised sum of the records' features, or with their noised moments around a centre."""
        asked = parse(MomentsRequest, request.settings)
        schema, event = self._data.train.schema, asked.event
        if schema.attributes:
            raise ExchangeError("Moments are of classes, and these records have attributes; leave the attributes out.")
        front = FrontEnd(asked.front_end, schema.shape)
        check_moments(front, len(schema.classes), event)
        centre = request.arrays.get("centre")
        if isinstance(event, GaussianMoments) and not _is_vector(centre, front.dims):
            raise ExchangeError(
                f"Moments are told around a centre, {front.dims} numbers of float64. Found no such array; send it."
            )
        event_id = self._spending.spend(request, asked.method, event)
        noise = self._noise.child("moments", event_id)
        told = told_moments(front, self._data.train, self._units, event, centre, noise=noise)
        if isinstance(event, GaussianMoments) and "counts" in told:
            self._remember_counts(request, asked.method, told["counts"], event.part_stds["counts"])
        return Reply({}, told)

    def _train_private_flow(self, request: Request) -> Reply:
        """Train a flow for one round of DP-SGD, and answer with its weights and nothing else."""
        asked = parse(PrivateFlowRequest, request.settings)
        train = self._data.train
        flow = self._flow(asked.flow, asked.seed, request)
        frozen = flow.frozen_names(asked.freeze)
        plan = self._spending.plan(request, asked.method)
        self._spending.check_flow(plan, flow_sha256(flow), starts=asked.round == 1)
        event_id = self._spending.spend(request, asked.method, asked.event)
        train_flow_privately(
            flow,
            torch.from_numpy(train.images).to(self._device),
            torch.from_numpy(train.condition).to(self._device),
            asked.event,
            units=torch.from_numpy(self._units.records).to(self._device),
            copies=asked.copies,
            learning_rate=asked.learning_rate,
            progress=Progress(asked.round - 1, asked.rounds),
            levels=train.schema.levels,
            noise=self._noise.child("flow", event_id),
            frozen=frozen,
        )
        trained = {name: array for name, array in get_weights(flow).items() if name not in frozen}
        return Reply({"structure": structure_sha256(flow)}, trained)

    def _release(self, request: Request) -> Reply:
        """Privatize what each unit contributes, keep the release ready to be fetched, and answer with its manifest."""
        asked = parse(ReleaseRequest, request.settings)
        plan, schema = self._spending.plan(request, asked.method), self._data.train.schema
        flow = self._flow(asked.flow, asked.seed, request)
        labels = "public" if asked.labels is None else "randomized"
        check_release(
            asked.mechanism,
            asked.shrinkage,
            asked.latent_dims,
            flow.dims,
            labels=labels,
            attributes=len(schema.attributes),
        )
        if plan.labels == "covered" and asked.labels is None:
            raise PrivacyError("A release that covers labels draws them anew. Found one that would tell the true ones.")
        check_class_counts(self._policy, self._known_counts(request, asked.method), schema.classes)
        mechanism = mechanism_of(asked.mechanism, asked.event)
        if isinstance(asked.event, Unprotected) and not self._simulation:
            raise PrivacyError(
                f"A real site releases no record unprotected. Found the mechanism '{asked.mechanism}'; choose one that "
                "adds noise."
            )
        settings = ReleaseSettings(mechanism, asked.latent_dims, asked.shrinkage, asked.labels)
        sha256 = flow_sha256(flow)
        self._spending.check_flow(plan, sha256, starts=False)
        claim = ReleaseClaim.of(self._spending.claim(plan), relation_of(plan.unit, plan.labels, schema.attributes))
        event_id = self._spending.spend(request, asked.method, *settings.cost)
        head = ReleaseHead(
            site=self.name,
            dataset=schema,
            mechanism=asked.mechanism,
            parameters=settings.parameters(flow.dims),
            noise=self._noise.kind,
            claim=claim,
            flow_sha256=sha256,
            event_id=event_id,
        )
        parts, cost = privatize(
            flow,
            self._data.train,
            settings,
            noise=self._noise.child("release", event_id),
            device=self._device,
            units=self._units,
            part_records=asked.shard_records,
        )
        assert cost == settings.cost, "what was written down is what is drawn"
        folder = self._outbox / event_id
        if self._ledger.simulation:
            shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run, whose ledger is gone with it
        manifest = write_bundle(head, parts, folder)
        return Reply({"manifest": manifest_to_json(manifest)})

    def _fetch(self, request: Request) -> Reply:
        """Answer with a shard that has been paid for: the same bytes, however often."""
        asked = parse(FetchRequest, request.settings)
        release = self._outbox / asked.event_id
        if not release.is_dir():
            raise ExchangeError(f"A shard is fetched from a release that was made. Found none of '{asked.event_id}'.")
        bundle = open_bundle(release)
        if self._policy.review:
            Review(self._outbox).check(bundle.manifest)
        data = bundle.data(asked.shard)
        return Reply({}, {"shard": np.frombuffer(data, dtype=np.uint8)})

    def _train_classifier(self, request: Request) -> Reply:
        asked = parse(ClassifierRequest, request.settings)
        model = self._classifier(asked.classifier, asked.seed)
        set_weights(model, request.arrays)
        training = asked.training
        loss: dict[str, float] = {}
        start = time.perf_counter()
        if isinstance(training, DpSgdTraining):
            class_weights = self._class_weights(training)
            event_id = self._spending.spend(request, asked.method, training.event)
            fixed, learned = split_features(model)
            told, places = self._units.placed(self._data.train)
            inputs = features_of(fixed, torch.from_numpy(told.images).to(self._device))
            train_dp_sgd(
                learned,
                cross_entropy_of(inputs, torch.from_numpy(told.labels).to(self._device), class_weights),
                training.event,
                units=torch.from_numpy(places).to(self._device),
                optimizer=lambda parameters: _sgd(parameters, training),
                noise=self._noise.child("dp-sgd", event_id),
            )
        else:
            self._spending.spend(request, asked.method, CLASSIFIER_WEIGHTS)
            shuffler = self._shuffler(asked.seed, asked.method, "classifier", asked.round)
            loss["loss"] = self._train_epochs(model, training, shuffler)
        figures = self._simulation_only(**loss, seconds=time.perf_counter() - start)
        return Reply({"structure": structure_sha256(model), **figures}, get_weights(model))

    def _class_weights(self, training: DpSgdTraining) -> torch.Tensor | None:
        """Return the factor of each class's loss, float32 (classes,).

        Raises:
            ExchangeError: there is not one for each class.
        """
        weights, classes = training.class_weights, len(self._data.train.schema.classes)
        if weights is None:
            return None
        if len(weights) != classes:
            raise ExchangeError(f"Every class has a weight. Found {len(weights)} for {classes} classes; send one each.")
        return torch.tensor(weights, dtype=torch.float32, device=self._device)

    def _evaluate(self, request: Request) -> Reply:
        asked = parse(EvaluateRequest, request.settings)
        self._spending.check_evaluation(asked.event, len(self._data.test.schema.classes))
        model = self._evaluated(asked)
        set_weights(model, request.arrays)
        event_id = self._spending.spend(request, asked.method, asked.event or EXACT_TEST_RESULTS, units="test")
        return self._evaluation_of(model, asked.event, event_id)

    def _train_local(self, request: Request) -> Reply:
        """Train a new classifier on the site's own records, and answer with its test results; it stays here."""
        asked = parse(LocalRequest, request.settings)
        self._spending.check_evaluation(asked.evaluation, len(self._data.test.schema.classes))
        model = self._classifier(asked.classifier, asked.seed)
        self._spending.spend(request, asked.method, LOCAL_TEST_RESULTS)  # a function of training records, noised or not
        event_id = self._spending.spend(request, asked.method, asked.evaluation or EXACT_TEST_RESULTS, units="test")
        self._train_epochs(model, asked.training, self._shuffler(asked.seed, asked.method, "classifier"))
        return self._evaluation_of(model, asked.evaluation, event_id)

    def _train_epochs(self, model: torch.nn.Module, training: EpochTraining, shuffler: torch.Generator) -> float:
        """Train in place on the training records without privacy, and return the mean loss."""
        train = self._data.train
        return train_epochs(
            model,
            torch.from_numpy(train.images),
            torch.from_numpy(train.labels),
            epochs=training.epochs,
            batch_size=training.batch_size,
            optimizer=_sgd(list(model.parameters()), training),
            generator=shuffler,
        )

    def _evaluation_of(self, model: torch.nn.Module, event: GaussianHistogram | None, event_id: str) -> Reply:
        """Answer with a classifier's confusion counts and score histograms: exact ones, or with the noise of an event.

        What is exact is of all test records; what is noised, of those that each test unit contributes.
        """
        test = self._data.test
        if event is None:
            return Reply({}, exact_counts(model, test))
        noise = self._noise.child("evaluation", event_id)
        return Reply({}, told_with_noise(model, test, self._test_units, event, noise=noise))

    def _account(self, request: Request) -> Reply:
        return Reply(self._spending.account(request.run))

    def _flow(self, config: FlowConfig, seed: int, request: Request) -> ConditionalFlow:
        schema = self._data.train.schema
        flow = ConditionalFlow(config, schema.shape, schema.conditions, seed=seed)
        set_weights(flow, request.arrays)
        return flow.to(self._device)

    def _classifier(self, config: ClassifierConfig, seed: int) -> torch.nn.Module:
        """Return a new classifier, with the initial weights of a seed."""
        schema = self._data.train.schema
        return build_classifier(config, schema.shape, len(schema.classes), seed=seed).to(self._device)

    def _evaluated(self, asked: EvaluateRequest) -> torch.nn.Module:
        """Return what is evaluated, a classifier or a flow's Bayes rule, before its weights."""
        if asked.flow is None:
            assert asked.classifier is not None, "a request names one of the two"
            return self._classifier(asked.classifier, asked.seed)
        return FlowBayes.of(asked.flow, self._data.train.schema, seed=asked.seed, ridge=asked.ridge).to(self._device)

    def _shuffler(self, seed: int, *purpose: str | int, device: torch.device | None = None) -> torch.Generator:
        """Return the generator that shuffles and dequantizes for a purpose. Not a source of privacy."""
        name = repr((seed, self.name, purpose)).encode()
        state = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
        return torch.Generator(device=device or "cpu").manual_seed(state)

    def _simulation_only(self, **figures: float) -> dict[str, Any]:
        return {"simulation_only": figures} if self._simulation else {}


def _is_vector(array: np.ndarray | None, dims: int) -> bool:
    return array is not None and array.shape == (dims,) and array.dtype == np.float64


def _check_disjoint(data: SiteData) -> None:
    """Check that no patient is trained on and tested on: what is told of test records is apart from all else.

    Raises:
        DataError: one is.
    """
    trained, tested = data.train.patients, data.test.patients
    if trained is not None and tested is not None and len(np.intersect1d(trained, tested)):
        raise DataError("A patient is trained on or tested on, not both. Some are both; move each to one of the two.")


def _sgd(parameters: list[torch.nn.Parameter], training: EpochTraining | DpSgdTraining) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=training.momentum)

"""What a site trains: flows and classifiers, by DP-SGD or, where nothing is protected, without."""

import time

import torch

from cadp_fl.classifier.fixed import features_of, split_features
from cadp_fl.classifier.training import train_epochs
from cadp_fl.config import parse
from cadp_fl.errors import ExchangeError
from cadp_fl.flow.private_training import train_flow_privately
from cadp_fl.flow.storage import flow_sha256
from cadp_fl.flow.training import Progress, train_flow
from cadp_fl.privacy.claims import CLASSIFIER_WEIGHTS, FLOW_WEIGHTS
from cadp_fl.privacy.dpsgd import cross_entropy_of, train_dp_sgd
from cadp_fl.site.context import SiteContext
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import (
    ClassifierRequest,
    DpSgdTraining,
    EpochTraining,
    FlowRequest,
    LocalRequest,
    PrivateFlowRequest,
)
from cadp_fl.weights import get_weights, set_weights, structure_sha256

__all__ = ["Training"]


class Training:
    """The answers of a site that are trained on its records.

    Args:
        context: what the site computes with.
    """

    def __init__(self, context: SiteContext) -> None:
        self._context = context

    def flow(self, request: Request) -> Reply:
        """Train a flow for one round without privacy, and answer with its weights."""
        asked = parse(FlowRequest, request.settings)
        self._context.privacy_filter.plan(request, asked.method)  # before anything is built that a server sized
        train = self._context.data.train
        flow = self._context.flow(asked.flow, asked.seed, request)
        frozen = flow.frozen_names(asked.freeze)
        self._context.privacy_filter.spend(request, asked.method, FLOW_WEIGHTS)
        start = time.perf_counter()
        loss = train_flow(
            flow,
            torch.from_numpy(train.records).to(self._context.device),
            torch.from_numpy(train.condition).to(self._context.device),
            asked.flow.training,
            codec=self._context.codec,
            progress=Progress(asked.round - 1, asked.flow.training.rounds),
            generator=self._context.shuffler(
                asked.seed, asked.method, "flow", asked.round, device=self._context.device
            ),
            frozen=frozen,
        )
        trained = {name: array for name, array in get_weights(flow).items() if name not in frozen}
        figures = self._context.simulation_only(bits_per_dim=loss, seconds=time.perf_counter() - start)
        return Reply({"structure": structure_sha256(flow), **figures}, trained)

    def private_flow(self, request: Request) -> Reply:
        """Train a flow for one round of DP-SGD, and answer with its weights and nothing else."""
        asked = parse(PrivateFlowRequest, request.settings)
        plan = self._context.privacy_filter.plan(request, asked.method)
        train = self._context.data.train
        flow = self._context.flow(asked.flow, asked.seed, request)
        frozen = flow.frozen_names(asked.freeze)
        self._context.privacy_filter.check_flow(plan, flow_sha256(flow), starts=asked.round == 1)
        event_id = self._context.privacy_filter.spend(request, asked.method, asked.event)
        train_flow_privately(
            flow,
            torch.from_numpy(train.records).to(self._context.device),
            torch.from_numpy(train.condition).to(self._context.device),
            asked.event,
            units=torch.from_numpy(self._context.units.records).to(self._context.device),
            copies=asked.copies,
            learning_rate=asked.learning_rate,
            progress=Progress(asked.round - 1, asked.rounds),
            codec=self._context.codec,
            noise=self._context.noise.child("flow", event_id),
            frozen=frozen,
        )
        trained = {name: array for name, array in get_weights(flow).items() if name not in frozen}
        return Reply({"structure": structure_sha256(flow)}, trained)

    def classifier(self, request: Request) -> Reply:
        """Train a classifier for one round, by DP-SGD or without privacy, and answer with its weights."""
        asked = parse(ClassifierRequest, request.settings)
        self._context.privacy_filter.plan(request, asked.method)
        model = self._context.classifier(asked.classifier, asked.seed)
        set_weights(model, request.arrays)
        training = asked.training
        loss: dict[str, float] = {}
        start = time.perf_counter()
        if isinstance(training, DpSgdTraining):
            class_weights = self._class_weights(training)
            event_id = self._context.privacy_filter.spend(request, asked.method, training.event)
            fixed, learned = split_features(model)
            contributed, places = self._context.units.placed(self._context.data.train)
            inputs = features_of(fixed, self._context.codec.inputs(contributed.records).to(self._context.device))
            train_dp_sgd(
                learned,
                cross_entropy_of(inputs, torch.from_numpy(contributed.labels).to(self._context.device), class_weights),
                training.event,
                units=torch.from_numpy(places).to(self._context.device),
                optimizer=lambda parameters: _sgd(parameters, training),
                noise=self._context.noise.child("dp-sgd", event_id),
            )
        else:
            self._context.privacy_filter.spend(request, asked.method, CLASSIFIER_WEIGHTS)
            shuffler = self._context.shuffler(asked.seed, asked.method, "classifier", asked.round)
            loss["loss"] = self._train_epochs(model, training, shuffler)
        figures = self._context.simulation_only(**loss, seconds=time.perf_counter() - start)
        return Reply({"structure": structure_sha256(model), **figures}, get_weights(model))

    def local(self, model: torch.nn.Module, asked: LocalRequest) -> None:
        """Train a classifier in place on the site's own records, without privacy: it stays here."""
        self._train_epochs(model, asked.training, self._context.shuffler(asked.seed, asked.method, "classifier"))

    def _train_epochs(self, model: torch.nn.Module, training: EpochTraining, shuffler: torch.Generator) -> float:
        """Train in place on the training records without privacy, and return the mean loss."""
        train = self._context.data.train
        return train_epochs(
            model,
            self._context.codec.inputs(train.records),
            torch.from_numpy(train.labels),
            epochs=training.epochs,
            batch_size=training.batch_size,
            optimizer=_sgd(list(model.parameters()), training),
            generator=shuffler,
        )

    def _class_weights(self, training: DpSgdTraining) -> torch.Tensor | None:
        """Return the factor of each class's loss, float32 (classes,).

        Raises:
            ExchangeError: there is not one for each class.
        """
        weights, classes = training.class_weights, len(self._context.data.train.schema.classes)
        if weights is None:
            return None
        if len(weights) != classes:
            raise ExchangeError(f"Every class has a weight. Found {len(weights)} for {classes} classes; send one each.")
        return torch.tensor(weights, dtype=torch.float32, device=self._context.device)


def _sgd(parameters: list[torch.nn.Parameter], training: EpochTraining | DpSgdTraining) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=training.momentum)

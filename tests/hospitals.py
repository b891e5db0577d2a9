"""Real sites in this process: each with a ledger, answers and an outbox in a folder of its own."""

from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from cadp_fl.config import EvaluationPolicy, PolicyConfig, StudyConfig, load_study
from cadp_fl.data.partition import deal
from cadp_fl.data.sources import load_source
from cadp_fl.federated.flower_client import register
from cadp_fl.federated.flower_server import Workflow
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.policy import open_policy
from cadp_fl.site.reply_store import ReplyStore
from cadp_fl.site.review import Review
from cadp_fl.site.site import Site
from tests.conftest import ROOT, TINY
from tests.local_grid import LocalGrid

METHODS = (
    "methods={cadp: {drawn: 200}, dp-sgd: {model: linear, rounds: 2, local_steps: 2, sampling_rate: 0.5, "
    "clip_norm: 1.0, learning_rate: 2.0}}"
)
"""Two methods whose guarantee is end-to-end: one with a release, one of rounds."""


class Hospitals:
    """A study over real sites that are called in this process. Their noise is seeded, so that runs can
    be compared, and protects nothing; with the override `noise=entropy` it does.

    Args:
        folder: of everything; the run's is below it.
        overrides: of the quickstart.
        policy: what every site allows, beside what an open policy does.
        names: that the nodes are registered under, a site a node; by default the study's.
    """

    def __init__(self, folder: Path, *overrides: str, names: tuple[str, ...] = (), **policy: object) -> None:
        settings = [f"{key}={value}" for key, value in TINY.items() if key not in ("methods", "flow.warm_start")]
        self.study: StudyConfig = load_study(
            ROOT / "configs" / "quickstart.yaml", [*settings, METHODS, "flow.warm_start=moments", *overrides]
        )
        self.root, self.folder = folder, folder / "run"
        self.names = names or self.study.sites.site_names
        self.policy: PolicyConfig = open_policy().model_copy(
            update={
                "population": "patients",
                "delta": 1e-4,
                "made_flows": True,
                "evaluation": EvaluationPolicy(exact=True, epsilon=100.0, delta=5e-4, count=1_000_000),
                **policy,
            }
        )
        self.dealt = deal(
            load_source(self.study.data),
            self.study.sites.count,
            self.study.sites.partition,
            self.study.data.test_fraction,
            seed=self.study.seed,
        )
        self.called: dict[str, Site] = {}
        self.says: dict[str, str] = {}
        """Names by which sites call themselves, where those are not the ones of their nodes."""
        self.steps: list[dict] = []
        self.start()

    def start(self) -> None:
        """Start every process again: the nodes, the sites and the server's grid."""
        app = ClientApp()
        register(app, lambda context: self.site(self.names[int(context.node_config["partition-id"])]))
        self.grid = LocalGrid(app, len(self.names), {}, names=self.names)
        self.called.clear()

    def go(self, *, resume: bool = False) -> str:
        self.steps.clear()
        workflow = Workflow(self.study, self.folder, watch=self.steps.append, resume=resume, federation="lungs")
        return workflow.run(self.grid, None)

    def site(self, name: str) -> Site:
        if name not in self.called:
            place = self.root / "sites" / name
            ledger = place / "ledger.db"
            if not ledger.exists():
                place.mkdir(parents=True)
                DurableLedger.create(ledger, population="patients", unit="record")
            self.called[name] = Site(
                self.says.get(name, name),
                self.dealt[self.names.index(name) % len(self.dealt)],
                ledger=self.ledger(name),
                noise=self._noise().child("site", name),
                device=torch.device("cpu"),
                outbox=place / "outbox",
                simulation=False,
                policy=self.policy,
                answers=ReplyStore(place / "answers"),
            )
        return self.called[name]

    def _noise(self) -> NoiseSource:
        return NoiseSource.from_entropy() if self.study.noise == "entropy" else NoiseSource.from_seed(7)

    def ledger(self, name: str) -> DurableLedger:
        return DurableLedger.open(self.root / "sites" / name / "ledger.db", population="patients", unit="record")

    def entries(self, name: str) -> list[dict]:
        """Return what a site's ledger holds, the run's random id left out."""
        return [link.entry for link in self.ledger(name).links()[1:]]

    def reserved(self, name: str) -> tuple[Plan, ...]:
        """Return the plans that a site set aside."""
        return self.ledger(name).plans()

    def review(self, name: str) -> Review:
        return Review(self.root / "sites" / name / "outbox")

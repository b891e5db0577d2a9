"""The real client and server code over a Grid in memory."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from rich.console import Console
from safetensors.numpy import load_file

from cadp_fl.cli.progress import results_table
from cadp_fl.config import load_study
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ConfigError, FederationError, InputError
from cadp_fl.federated.flower_server import GridTransport, Workflow
from cadp_fl.flow.storage import FlowCard, load_flow, read_card, save_flow
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.plan import Plan
from cadp_fl.release.bundle import open_bundle
from cadp_fl.release.dataset import load_release
from cadp_fl.site.protocol import ACTIONS
from cadp_fl.weights import get_weights
from clients.client_app import app as client_app
from tests.local_grid import LocalGrid

RELEASE, FLOW = ACTIONS["release"], ACTIONS["train_flow"]


class Run:
    """One study over a LocalGrid."""

    def __init__(self, run_config, *overrides, nodes=3):
        self.config = run_config | {"set": "; ".join([run_config["set"], *overrides])}
        self.folder = Path(run_config["output-dir"])
        self.study = load_study(Path(run_config["config"]), self.config["set"].split("; "))
        self.grid = LocalGrid(client_app, nodes, self.config)
        self.steps = []

    def go(self, *, resume=False):
        return Workflow(self.study, self.folder, watch=self.steps.append, resume=resume).run(self.grid, None)

    def lines(self):
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def json(self, name):
        return json.loads((self.folder / name).read_text())


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    from tests.conftest import ROOT, TINY

    run = Run(
        {
            "config": str(ROOT / "configs" / "quickstart.yaml"),
            "output-dir": str(tmp_path_factory.mktemp("run") / "out"),
            "set": "; ".join(f"{key}={value}" for key, value in TINY.items()),
        }
    )
    assert run.go() == "complete"
    return run


def test_the_run_folder_holds_what_the_design_says(complete):
    names = {path.relative_to(complete.folder).as_posix() for path in complete.folder.rglob("*") if path.is_file()}
    expected = {"config.yaml", "summary.json", "privacy.json", "report.html", "metrics.jsonl"}
    expected |= {f"models/{name}.safetensors" for name in ("flow", "classifier-dp-sgd", "classifier-fedavg")}
    for site in ("north", "east", "south"):
        expected |= {f"releases/{site}/manifest.json", f"sites/{site}/preview.npz"}
    assert expected <= names
    assert load_study(complete.folder / "config.yaml") == complete.study


def test_the_summary_has_every_method_with_its_figures_and_guarantee(complete):
    summary = complete.json("summary.json")
    assert (summary["schema_version"], summary["status"], summary["missing"]) == (1, "complete", [])
    assert (summary["noise"], summary["simulation"]) == ("seeded", True)
    rows = summary["methods"]
    assert list(rows) == ["cadp-given-flow", "dp-sgd", "fedavg"]
    assert [row["guarantee"] for row in rows.values()] == ["given-flow", "end-to-end", "none"]
    assert rows["cadp-given-flow"]["epsilon"] is None
    assert 2.9 < rows["cadp-given-flow"]["epsilon_if_flow_were_fixed"] <= 3.0
    assert 2.9 < rows["dp-sgd"]["epsilon"] <= 3.0
    assert rows["dp-sgd"]["epsilon_add_remove"] < rows["dp-sgd"]["epsilon"]
    assert rows["fedavg"]["epsilon"] is None
    release = rows["cadp-given-flow"]["release"]
    assert release["noise_std"] == pytest.approx(11.12, abs=0.01)
    assert (release["clip_norm"], release["latent_dims"], release["dims"]) == (4.0, 16, 64)
    assert release["correlation"] == pytest.approx(0.08, abs=0.01)
    for row in rows.values():
        for figures in (row, *row["per_site"].values()):
            assert 0 <= figures["accuracy"] <= 1
            assert figures["auroc"] is not None or figures["undefined"]["auroc"]
    assert all(crossed["up"] > 0 and crossed["down"] > 0 for crossed in summary["bytes"].values())


def test_every_epsilon_is_that_of_the_ledgers_events(complete):
    privacy = complete.json("privacy.json")
    for method, entry in privacy["methods"].items():
        for account in entry["sites"].values():
            plan = Plan.from_json({"method": method, "events": account["events"], "delta": account["delta"]})
            if account["epsilon"] is not None:
                assert account["epsilon"] == epsilon_of(plan.events, plan.delta)
    steps = privacy["methods"]["dp-sgd"]["sites"]["east"]
    assert sum(event["steps"] for event in steps["spent"]) == steps["events"][0]["steps"] == 4
    together = privacy["all_methods_together"]["sites"]["east"]
    assert together["epsilon"] is together["delta"] is None
    assert len(together["unprotected"]) == 2


def test_the_statement_says_what_is_not_covered(complete):
    text = complete.json("privacy.json")["statement"]
    for part in (
        "NO end-to-end guarantee",
        "it was not, and the noise was seeded",
        "nothing released here is protected",
        "No patient is at two",
    ):
        assert part in text


def test_releases_are_verified_permuted_uint8_and_of_the_averaged_flow(complete):
    summary = complete.json("summary.json")
    for site in summary["sites"]:
        bundle = open_bundle(complete.folder / "releases" / site["site"])
        released = load_release(complete.folder / "releases" / site["site"])
        assert released.images.dtype == torch.uint8
        assert len(released) == site["train"]
        assert bundle.manifest.released_labels == {name: site["class_counts"].get(name, 0) for name in "0123456789"}
        assert bundle.manifest.parameters.latent_dims == 16
        claim = bundle.manifest.claim
        assert (claim.guarantee, claim.epsilon, claim.delta) == ("given-flow", None, 1e-5)
        assert claim.epsilon_if_flow_were_fixed == pytest.approx(3.0, abs=0.01)
        assert claim.relation == "replace one record, keep its label"


def test_models_are_safetensors_of_floats(complete):
    for path in (complete.folder / "models").iterdir():
        assert all(array.dtype == np.float32 for array in load_file(path).values())


def test_metrics_hold_a_line_a_round_and_phase(complete):
    lines = complete.lines()
    keys = [(line["phase"], line["round"]) for line in lines]
    assert len(keys) == len(set(keys))
    assert ("cadp-given-flow/flow", 2) in keys
    flow = next(line for line in lines if line["phase"] == "cadp-given-flow/flow")
    assert set(flow["simulation_only"]["bits_per_dim"]) == {"north", "east", "south"}
    assert isinstance(next(line for line in lines if line["phase"] == "fedavg/train")["loss"], float)
    assert "loss" not in next(line for line in lines if line["phase"] == "dp-sgd/train")


def test_nothing_but_named_tensors_and_json_crosses(complete):
    """What left the sites: weights in rounds, shards, counts in evaluations, nothing in the rest."""
    for sent, reply in zip(complete.grid.sent, complete.grid.replies, strict=True):
        arrays = reply.content.array_records["cadp-arrays"]
        dtypes = {array.dtype for array in arrays.values()}
        shapes = {tuple(array.shape) for array in arrays.values()}
        kind = sent.metadata.message_type
        if kind == ACTIONS["fetch"]:
            assert (set(arrays), dtypes) == ({"shard"}, {"uint8"})
        elif kind == ACTIONS["evaluate"]:
            assert set(arrays) == {"confusion", "histograms"}
            assert shapes == {(10, 10), (10, 2, 1000)}
        elif kind in (FLOW, ACTIONS["train_classifier"]):
            assert dtypes == {"float32"}
        else:
            assert not arrays


def test_progress_names_every_phase_site_and_round(complete):
    assert complete.steps[0]["step"] == "phases"
    assert complete.steps[-1] == {"step": "done", "status": "complete"}
    answers = [step for step in complete.steps if step.get("phase") == "cadp-given-flow/flow" and "site" in step]
    assert {(step["site"], step["round"]) for step in answers} == {
        (site, number) for site in ("north", "east", "south") for number in (1, 2)
    }
    assert all(isinstance(step["figures"]["bits_per_dim"], float) for step in answers)


def test_the_same_seed_gives_the_same_summary(complete, run_config):
    again = Run(run_config)
    again.go()
    assert stable(again.json("summary.json")) == stable(complete.json("summary.json"))
    for site in ("north", "east", "south"):
        ours, theirs = (open_bundle(each.folder / "releases" / site).manifest for each in (again, complete))
        assert ours == theirs


def test_a_method_gives_the_same_alone_as_beside_others(complete, run_config):
    alone = Run(run_config, "methods={cadp-given-flow: {}}")
    alone.go()
    name = "cadp-given-flow"
    assert alone.json("summary.json")["methods"][name] == complete.json("summary.json")["methods"][name]


def test_a_study_with_laplace_noise_reports_its_scale_and_its_cost(run_config):
    run = Run(run_config, "release.mechanism=laplace", "methods={cadp-given-flow: {}}")
    assert run.go() == "complete"
    row = run.json("summary.json")["methods"]["cadp-given-flow"]
    assert row["guarantee"] == "given-flow"
    assert row["epsilon_if_flow_were_fixed"] == pytest.approx(3.0, rel=1e-12)
    assert row["epsilon_if_flow_were_fixed_add_remove"] == pytest.approx(1.5, rel=1e-12)
    assert (row["release"]["mechanism"], row["release"]["clip_norm"]) == ("laplace", 4.0)
    assert row["release"]["noise_scale"] == pytest.approx(8 / 3)
    assert row["release"]["noise_std"] == pytest.approx(8 / 3 * 2**0.5)
    assert open_bundle(run.folder / "releases" / "north").manifest.parameters.noise_scale == pytest.approx(8 / 3)
    assert "standard deviation 3.771 (scale b = 2.667)" in (run.folder / "report.html").read_text()
    assert "standard deviation 3.771 (scale 2.667), 16 of 64" in printed(run)


def test_a_study_on_a_grid_reports_its_step_and_the_gaussian_cost(run_config):
    run = Run(run_config, "release.mechanism=grid-gaussian", "methods={cadp-given-flow: {}}")
    assert run.go() == "complete"
    row = run.json("summary.json")["methods"]["cadp-given-flow"]
    assert 2.9 < row["epsilon_if_flow_were_fixed"] <= 3.0
    assert 4096 <= row["release"]["noise_std"] / row["release"]["grid"] < 8192
    assert open_bundle(run.folder / "releases" / "north").manifest.parameters.grid == row["release"]["grid"]
    spent = run.json("privacy.json")["methods"]["cadp-given-flow"]["sites"]["north"]["spent"]
    assert [event["grid"] for event in spent if event["kind"] == "latent-gaussian-grid"] == [row["release"]["grid"]]
    grid = f" on a grid of {row['release']['grid']:.4g}, 16 of 64"
    assert grid in (run.folder / "report.html").read_text()
    assert grid in printed(run)


def test_a_study_without_a_mechanism_says_that_nothing_is_protected(run_config):
    run = Run(run_config, "release.mechanism=none", "methods={cadp-given-flow: {}}")
    assert run.go() == "complete"
    row = run.json("summary.json")["methods"]["cadp-given-flow"]
    assert (row["guarantee"], row["epsilon"], row["epsilon_if_flow_were_fixed"]) == ("none", None, None)
    assert row["unprotected"] == [
        "records released without clipping or noise",
        "weights of a flow trained without differential privacy",
    ]
    release = row["release"]
    assert release["clip_norm"] is release["noise_std"] is release["noise_scale"] is None
    assert release["correlation"] == 1.0
    statement = run.json("privacy.json")["methods"]["cadp-given-flow"]["statement"]
    assert "without any protection: records released without clipping or noise; weights of a flow" in statement
    page = (run.folder / "report.html").read_text()
    assert "no protection</strong>, the records were neither clipped nor noised" in page
    assert "None" not in page
    assert "with NO protection: neither clip nor noise" in printed(run)


def printed(run):
    """Return what the command line prints of a run."""
    console = Console(record=True, file=io.StringIO(), width=200)
    results_table(console, run.json("summary.json"), run.folder)
    return console.export_text()


def stable(summary):
    return {key: value for key, value in summary.items() if key not in ("started", "seconds")}


def test_entropy_noise_is_new_each_time_and_says_so(run_config, tmp_path):
    bundles = []
    for name in ("a", "b"):
        run = Run(run_config | {"output-dir": str(tmp_path / name)}, "noise=entropy", "methods={cadp-given-flow: {}}")
        run.go()
        bundles.append(open_bundle(run.folder / "releases" / "north"))
        assert run.json("summary.json")["noise"] == bundles[-1].manifest.noise == "entropy"
        assert "operating system's entropy" in run.json("privacy.json")["statement"]
    assert bundles[0].manifest.shards != bundles[1].manifest.shards


@pytest.mark.parametrize("how", ["silent", "crash"])
@pytest.mark.parametrize("kind", [FLOW, RELEASE, ACTIONS["evaluate"]])
def test_a_run_that_lost_a_site_goes_on_and_names_it(run_config, how, kind):
    run = Run(run_config, "sites.timeout_seconds=0.5", "methods={cadp-given-flow: {}, fedavg: {rounds: 1}}")
    run.grid.fail[(11, kind)] = how
    assert run.go() == "incomplete"
    summary = run.json("summary.json")
    assert summary["status"] == "incomplete"
    assert {gap["site"] for gap in summary["missing"]} == {"east"}
    assert "secret" not in json.dumps(summary)
    assert (run.folder / "report.html").read_text().count("<strong>Incomplete.</strong>") == 1
    if kind == RELEASE:
        assert not (run.folder / "releases" / "east").exists()


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (
            "<class 'ray.exceptions.OutOfMemoryError'>:<'Task was killed due to the node running low on memory. 42'>",
            "for memory",
        ),
        (
            "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly. 42'>",
            "as it does when memory or the disk",
        ),
        ("<class 'ValueError'>:<'42'>", "Flower error 2"),
    ],
)
def test_a_worker_that_was_killed_is_one_sentence(run_config, reason, said):
    run = Run(run_config, "methods={fedavg: {rounds: 1}}")
    plain = run.grid.app

    def dying(message, context):
        if context.node_id == 11 and message.metadata.message_type == ACTIONS["train_classifier"]:
            return Message(Error(code=2, reason=reason), reply_to=message)
        return plain(message, context)

    run.grid.app = dying
    assert run.go() == "incomplete"
    (gap,) = run.json("summary.json")["missing"]
    assert said in gap["reason"]
    assert "42" not in json.dumps(gap)


def test_below_the_quorum_a_run_stops_and_says_who(run_config):
    run = Run(run_config, "sites.timeout_seconds=0.5")
    run.grid.fail |= {(10, FLOW): "crash", (12, FLOW): "silent"}
    with pytest.raises(FederationError, match="needs 2 sites"):
        run.go()
    summary = run.json("summary.json")
    assert summary["status"] == "incomplete"
    assert {gap["site"]: gap["reason"] for gap in summary["missing"] if gap["phase"].endswith("flow")} == {
        "north": "the site's process failed (Flower error 1; Flower's log says why)",
        "south": "did not answer in time",
    }
    assert "needs 2 sites" in summary["failure"]
    assert run.steps[-1]["step"] == "failed"
    assert (run.folder / "report.html").exists()


class Killed(BaseException):
    """Ends a run as a kill would: no handler expects it."""


@pytest.mark.parametrize(
    ("kind", "nth", "begins_again"),
    [
        (FLOW, 4, "cadp-given-flow/flow"),
        (RELEASE, 2, "cadp-given-flow/release"),
        (ACTIONS["fetch"], 2, "cadp-given-flow/release"),
        (ACTIONS["evaluate"], 4, "cadp-given-flow/central"),
        (ACTIONS["train_classifier"], 5, "dp-sgd/train"),
        (ACTIONS["train_classifier"], 11, "fedavg/train"),
    ],
)
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(complete, run_config, kind, nth, begins_again):
    run, seen = Run(run_config), []
    answer = run.grid.app

    def killing(message, context):
        seen.append(message.metadata.message_type)
        if seen.count(kind) == nth:
            raise Killed
        return answer(message, context)

    run.grid.app = killing
    with pytest.raises(Killed):
        run.go()
    again = Run(run_config)
    assert again.go(resume=True) == "complete"
    assert next(iter(again.steps[0]["phases"])) == begins_again
    ours, theirs = again.json("summary.json"), complete.json("summary.json")
    assert ours["methods"] == theirs["methods"]
    assert len(ours["resumed"]) == 1
    for site in ("north", "east", "south"):
        manifests = [open_bundle(each.folder / "releases" / site).manifest for each in (again, complete)]
        assert manifests[0] == manifests[1]
        spent = [each.json("privacy.json")["methods"] for each in (again, complete)]
        for method in spent[0]:
            assert spent[0][method]["sites"][site] == spent[1][method]["sites"][site]
    assert (
        "is not in these accounts, though its figures could be read" in again.json("privacy.json")["resumed"]["meaning"]
    )
    keys = [[(line["phase"], line["round"]) for line in each.lines()] for each in (again, complete)]
    assert [key for key in keys[0] if key[0] != "describe" and key[0] != "reserve"] == [
        key for key in keys[1] if key[0] != "describe" and key[0] != "reserve"
    ]


def test_a_run_is_not_resumed_with_another_flow_than_it_began_with(run_config, tmp_path):
    study = load_study(Path(run_config["config"]), run_config["set"].split("; "))
    schema, path = load_source(study.data).schema, tmp_path / "flow.safetensors"
    start = f"{{path: {path}, trained_on: public, freeze: [all]}}"
    overrides = f"flow.pretrained={start}", "methods={cadp: {}, fedavg: {rounds: 1}}"
    card = FlowCard(study.flow, schema, 5, "public")
    save_flow(path, card.build(), card)
    run = Run(run_config, *overrides)
    answer = run.grid.app

    def killing(message, context):
        if message.metadata.message_type == ACTIONS["train_classifier"]:
            raise Killed
        return answer(message, context)

    run.grid.app = killing
    with pytest.raises(Killed):
        run.go()
    save_flow(path, FlowCard(study.flow, schema, 6, "public").build(), card)
    with pytest.raises(
        InputError, match=r"The file of flow\.pretrained is another one now \(SHA-256 \w{12}, and was \w{12}\)"
    ):
        Run(run_config, *overrides).go(resume=True)
    save_flow(path, card.build(), card)
    assert Run(run_config, *overrides).go(resume=True) == "complete"


def test_what_cannot_be_resumed_says_so(run_config):
    run = Run(run_config)
    run.folder.mkdir()
    (run.folder / "checkpoint.json").write_text("{")
    with pytest.raises(InputError, match="has none that can be read"):
        run.go(resume=True)


def test_sites_that_train_alone_send_test_results_and_no_weights(run_config):
    run = Run(run_config, "methods={local: {epochs: 2}}")
    assert run.go() == "complete"
    kinds = {sent.metadata.message_type for sent in run.grid.sent}
    assert kinds == {ACTIONS[action] for action in ("describe", "reserve", "train_local", "account")}
    asked = next(sent for sent in run.grid.sent if sent.metadata.message_type == ACTIONS["train_local"])
    assert not asked.content.array_records["cadp-arrays"]
    for sent, reply in zip(run.grid.sent, run.grid.replies, strict=True):
        arrays = reply.content.array_records["cadp-arrays"]
        expected = {"confusion", "histograms"} if sent.metadata.message_type == ACTIONS["train_local"] else set()
        assert set(arrays) == expected
    row, privacy = run.json("summary.json")["methods"]["local"], run.json("privacy.json")["methods"]["local"]
    assert (row["guarantee"], row["epsilon"]) == ("none", None)
    assert set(row["per_site"]) == {"north", "east", "south"}
    sizes = {site["site"]: site["test"] for site in run.json("summary.json")["sites"]}
    correct = sum(row["per_site"][site]["accuracy"] * size for site, size in sizes.items())
    assert row["accuracy"] == pytest.approx(correct / sum(sizes.values())), "pooled over each site's own classifier"
    assert "left the sites without any protection: test results of a classifier" in privacy["statement"]
    assert [event["kind"] for event in privacy["sites"]["east"]["spent"]] == ["unprotected"]
    assert not list(run.folder.glob("models/*"))
    assert "each site's own classifier" in (run.folder / "report.html").read_text()
    assert "none: no privacy" in printed(run)


def test_a_site_alone_learns_from_its_own_records_only(run_config):
    """Four classes a site, and test records of those alone: easier than the ten that no site could know."""
    run = Run(
        run_config,
        "sites.partition={kind: label, classes_per_site: 4, min_records: 20}",
        "classifier.model=linear",
        "methods={local: {epochs: 30, learning_rate: 0.5}}",
    )
    assert run.go() == "complete"
    assert run.json("summary.json")["methods"]["local"]["accuracy"] > 0.9


def test_a_flow_that_is_public_and_fixed_makes_cadp_end_to_end(run_config, tmp_path):
    study = load_study(Path(run_config["config"]), run_config["set"].split("; "))
    schema = load_source(study.data).schema
    card = FlowCard(study.flow, schema, 5, "public")
    save_flow(tmp_path / "flow.safetensors", card.build(), card)
    start = f"{{path: {tmp_path / 'flow.safetensors'}, trained_on: public, freeze: [all]}}"
    run = Run(run_config, f"flow.pretrained={start}", "methods=[cadp, cadp-given-flow]")
    assert run.go() == "complete"
    rows, privacy = run.json("summary.json")["methods"], run.json("privacy.json")
    assert FLOW not in [sent.metadata.message_type for sent in run.grid.sent]
    for row in rows.values():
        assert (row["guarantee"], row["epsilon_if_flow_were_fixed"]) == ("end-to-end", None)
        assert 2.9 < row["epsilon"] <= 3.0
    assert (
        "This rests on a declaration: the flow was trained on 'digits', in which no private record"
        in (privacy["methods"]["cadp"]["statement"])
    )
    for text in (
        privacy["methods"]["cadp"]["statement"],
        privacy["statement"],
        (run.folder / "report.html").read_text(),
    ):
        assert "CAUTION: the flow says that it was trained on" in text, "these are the same digits"
    assert {event["kind"] for event in privacy["methods"]["cadp"]["sites"]["east"]["spent"]} == {"latent-gaussian-grid"}
    assert (run.folder / "releases-cadp-given-flow" / "east" / "manifest.json").is_file()


def test_a_public_flow_of_other_records_needs_no_caution(run_config, tmp_path):
    study = load_study(Path(run_config["config"]), run_config["set"].split("; "))
    schema = load_source(study.data).schema.model_copy(update={"name": "postcodes"})
    card = FlowCard(study.flow, schema, 5, "public")
    save_flow(tmp_path / "flow.safetensors", card.build(), card)
    start = f"{{path: {tmp_path / 'flow.safetensors'}, trained_on: public, freeze: [all]}}"
    run = Run(run_config, f"flow.pretrained={start}", "methods=[cadp]")
    assert run.go() == "complete"
    assert "CAUTION" not in run.json("privacy.json")["statement"]


@pytest.mark.parametrize(
    ("declared", "stated", "guarantee"), [("private", "private", "given-flow"), ("private", "public", "given-flow")]
)
def test_a_flow_of_private_records_is_never_end_to_end(run_config, tmp_path, declared, stated, guarantee):
    study = load_study(Path(run_config["config"]), run_config["set"].split("; "))
    card = FlowCard(study.flow, load_source(study.data).schema, 5, stated)
    save_flow(tmp_path / "flow.safetensors", card.build(), card)
    start = f"{{path: {tmp_path / 'flow.safetensors'}, trained_on: {declared}}}"
    frozen = Run(run_config, f"flow.pretrained={start}", "flow.training.rounds=0", "methods=[cadp-given-flow]")
    assert frozen.go() == "complete"
    row = frozen.json("summary.json")["methods"]["cadp-given-flow"]
    assert (row["guarantee"], row["epsilon"]) == (guarantee, None)
    assert "no one has declared that it was" in frozen.json("privacy.json")["statement"]
    assert read_card(frozen.folder / "models" / "flow.safetensors").trained_on == "private"


def test_fine_tuning_on_private_records_is_not_covered_wherever_it_started(run_config, tmp_path):
    study = load_study(Path(run_config["config"]), run_config["set"].split("; "))
    card = FlowCard(study.flow, load_source(study.data).schema, 5, "public")
    flow = card.build()
    save_flow(tmp_path / "flow.safetensors", flow, card)
    start = f"{{path: {tmp_path / 'flow.safetensors'}, trained_on: public, freeze: [dense]}}"
    run = Run(run_config, f"flow.pretrained={start}", "methods=[cadp-given-flow]")
    assert run.go() == "complete"
    assert run.json("summary.json")["methods"]["cadp-given-flow"]["guarantee"] == "given-flow"
    tuned, after = load_flow(run.folder / "models" / "flow.safetensors")
    assert (after.trained_on, after.seed) == ("private", 5)
    moved = {name for name, array in get_weights(tuned).items() if not np.array_equal(array, get_weights(flow)[name])}
    assert moved
    assert not any(name.startswith("dense.") for name in moved)
    with pytest.raises(ConfigError, match="The method cadp takes a flow that no private record had a part in"):
        Run(run_config, f"flow.pretrained={start}", "methods=[cadp]").go()


def test_a_declaration_that_the_file_itself_denies_is_refused(run_config, tmp_path):
    study = load_study(Path(run_config["config"]), run_config["set"].split("; "))
    card = FlowCard(study.flow, load_source(study.data).schema, 5, "private")
    save_flow(tmp_path / "flow.safetensors", card.build(), card)
    start = f"{{path: {tmp_path / 'flow.safetensors'}, trained_on: public, freeze: [all]}}"
    with pytest.raises(ConfigError, match="says that it was trained on private records"):
        Run(run_config, f"flow.pretrained={start}").go()


def test_a_finished_run_is_never_overwritten(complete):
    kept = {path: path.read_bytes() for path in complete.folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="A run is never overwritten"):
        Workflow(complete.study, complete.folder, watch=lambda step: None).run(complete.grid, None)
    assert {path: path.read_bytes() for path in complete.folder.rglob("*") if path.is_file()} == kept


def test_nodes_that_say_nothing_are_not_told_apart(run_config):
    run = Run(run_config, "sites.timeout_seconds=0.5", "sites.quorum=1", "methods={fedavg: {rounds: 1}}")
    run.grid.fail |= {(10, ACTIONS["describe"]): "crash", (11, ACTIONS["describe"]): "silent"}
    assert run.go() == "incomplete"
    reasons = {gap["site"]: gap["reason"] for gap in run.json("summary.json")["missing"]}
    assert set(reasons) == {"north", "east"}
    assert reasons["north"] == reasons["east"]
    assert "did not answer in time" in reasons["north"]


def test_a_site_that_does_not_describe_itself_is_named(run_config):
    run = Run(run_config, "sites.timeout_seconds=0.5", "methods={fedavg: {rounds: 1}}")
    run.grid.fail[(11, ACTIONS["describe"])] = "crash"
    assert run.go() == "incomplete"
    assert [gap["site"] for gap in run.json("summary.json")["missing"]] == ["east"]


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_federation_has_as_many_nodes_as_sites(run_config, nodes, monkeypatch):
    monkeypatch.setattr(GridTransport.__init__, "__kwdefaults__", {"join_timeout": 0.1, "pause": 0.01, "named": False})
    run = Run(run_config, nodes=nodes)
    with pytest.raises(FederationError, match=f"has 3 sites, one a node. Found {nodes} nodes"):
        run.go()
    assert not (run.folder / "summary.json").exists()


def tamper(grid, kind, change):
    """Let every reply of a kind from node 11 be changed on its way."""
    original = grid.app

    def app(message, context):
        reply = original(message, context)
        if context.node_id == 11 and message.metadata.message_type == kind:
            change(reply.content)
        return reply

    grid.app = app


def edit_json(**changes):
    def change(content):
        tree = json.loads(content["cadp-json"]["json"]) | changes
        content["cadp-json"] = ConfigRecord({"json": json.dumps(tree)})

    return change


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"library": "9.9.0"}, "Site 'east' has 9.9.0"),
        ({"site": "north"}, "'north' is there twice"),
        ({"noise": "entropy"}, "Site 'east' has noise 'entropy'"),
        (
            {
                "dataset": {"name": "digits", "shape": [1, 8, 8], "classes": ["a", "b"], "levels": 17},
                "class_counts": {"a": 1},
            },
            "Field 'classes'",
        ),
        ({"dataset": {"name": "digits", "shape": [1, 4, 8], "classes": list("0123456789")}}, "Field 'shape'"),
    ],
)
def test_sites_that_do_not_fit_are_refused_by_name_and_field(run_config, changes, field):
    run = Run(run_config)
    tamper(run.grid, ACTIONS["describe"], edit_json(**changes))
    with pytest.raises(FederationError, match=field):
        run.go()


def drop_arrays(content):
    content.array_records["cadp-arrays"].clear()


def spoil_weights(content):
    from flwr.app import Array

    record = content.array_records["cadp-arrays"]
    name = next(iter(record))
    record[name] = Array(record[name].numpy() * np.nan)


def scalar_arrays(content):
    from flwr.app import Array

    record = content.array_records["cadp-arrays"]
    for name in list(record):
        record[name] = Array(np.array(1))


def replace_all(content):
    content.clear()
    content["x"] = ConfigRecord({"y": 1})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (FLOW, drop_arrays),
        (FLOW, spoil_weights),
        (FLOW, replace_all),
        (FLOW, edit_json(structure="0" * 64)),
        (ACTIONS["fetch"], drop_arrays),
        (ACTIONS["fetch"], scalar_arrays),
        (RELEASE, edit_json(manifest="{}")),
        (RELEASE, replace_all),
        (ACTIONS["evaluate"], drop_arrays),
        (ACTIONS["evaluate"], scalar_arrays),
        (ACTIONS["account"], edit_json(accounts=[])),
        (ACTIONS["train_local"], drop_arrays),
        (ACTIONS["train_classifier"], spoil_weights),
        (ACTIONS["account"], edit_json(accounts=[{"plan": {}}])),
    ],
)
def test_a_reply_that_does_not_fit_counts_as_none(run_config, kind, change):
    methods = "methods={cadp-given-flow: {}, fedavg: {rounds: 1}, local: {epochs: 1}}"
    run = Run(run_config, methods, "flow.training.rounds=1")
    tamper(run.grid, kind, change)
    assert run.go() == "incomplete"
    assert {gap["site"] for gap in run.json("summary.json")["missing"]} == {"east"}


def edit_manifest(change):
    def edit(content):
        tree = json.loads(json.loads(content["cadp-json"]["json"])["manifest"])
        change(tree)
        edit_json(manifest=json.dumps(tree))(content)

    return edit


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(noise="entropy"),
        lambda tree: tree["claim"].update(guarantee="end-to-end", epsilon=0.1, epsilon_if_flow_were_fixed=None),
        lambda tree: tree["claim"].update(epsilon_if_flow_were_fixed=0.1),
        lambda tree: tree["claim"].update(delta=1e-9),
        lambda tree: tree["claim"].update(relation="replace one hospital"),
        lambda tree: tree["claim"].update(declared=["all is well"]),
    ],
)
def test_a_release_that_claims_more_than_its_plan_is_refused(run_config, change):
    run = Run(run_config, "methods={cadp-given-flow: {}}", "flow.training.rounds=1")
    tamper(run.grid, RELEASE, edit_manifest(change))
    assert run.go() == "incomplete"
    assert {gap["site"] for gap in run.json("summary.json")["missing"]} == {"east"}
    assert not (run.folder / "releases" / "east").exists()


def test_a_release_that_claims_less_than_its_plan_is_taken(run_config):
    run = Run(run_config, "methods={cadp-given-flow: {}}", "flow.training.rounds=1")
    less = {"guarantee": "none", "epsilon_if_flow_were_fixed": None}
    tamper(run.grid, RELEASE, edit_manifest(lambda tree: tree["claim"].update(less)))
    assert run.go() == "complete"
    assert open_bundle(run.folder / "releases" / "east").manifest.claim.guarantee == "none"


@pytest.mark.parametrize("lie", ["abc", {"step": "done"}, {"bits_per_dim": "x"}, [1]])
def test_what_a_site_says_beside_its_reply_cannot_fake_progress(run_config, lie):
    run = Run(run_config, "methods={cadp-given-flow: {}}", "flow.training.rounds=1")
    tamper(run.grid, FLOW, edit_json(simulation_only=lie))
    assert run.go() == "complete"
    assert [step["step"] for step in run.steps].count("done") == 1


def test_a_late_site_rejoins_and_is_counted_once(run_config):
    run = Run(run_config, "sites.timeout_seconds=3", "methods={fedavg: {rounds: 3}}")
    run.grid.fail[(11, ACTIONS["train_classifier"])] = "late-once"
    assert run.go() == "incomplete"
    kind = ACTIONS["train_classifier"]
    to_late = [sent.metadata.group_id for sent in run.grid.sent if sent.metadata.dst_node_id == 11]
    assert to_late.count("fedavg/train-1") == to_late.count("fedavg/train-2") == to_late.count("fedavg/train-3") == 1
    answers = [
        (step["round"], step["site"]) for step in run.steps if step.get("phase") == "fedavg/train" and "site" in step
    ]
    assert [site for number, site in answers if number == 1 and site == "east"] == []
    counted = [line for line in run.lines() if line["phase"] == "fedavg/train"]
    assert [set(line["simulation_only"]["loss"]) for line in counted] == [
        {"north", "south"}, {"north", "east", "south"}, {"north", "east", "south"}
    ]  # fmt: skip
    assert len([reply for reply in run.grid.replies if reply.metadata.message_type == kind]) == 9
    assert run.json("summary.json")["missing"] == [
        {"site": "east", "phase": "fedavg/train", "reason": "did not answer in time"}
    ]
    assert len(run.json("privacy.json")["methods"]["fedavg"]["sites"]["east"]["spent"]) == 3


def test_a_site_that_missed_the_reservation_reserves_when_it_is_back(run_config):
    run = Run(run_config, "sites.timeout_seconds=0.5", "methods={dp-sgd: {rounds: 2}, fedavg: {rounds: 1}}")
    run.grid.fail[(11, ACTIONS["reserve"])] = "late-once"
    assert run.go() == "incomplete"
    spent = run.json("privacy.json")["methods"]
    assert len(spent["dp-sgd"]["sites"]["east"]["spent"]) == 2
    assert len(spent["fedavg"]["sites"]["east"]["spent"]) == 1


def test_a_site_that_never_answers_is_sent_one_message(run_config):
    run = Run(run_config, "sites.timeout_seconds=0.5", "methods={fedavg: {rounds: 3}}")
    run.grid.fail[(11, ACTIONS["train_classifier"])] = "silent"
    assert run.go() == "incomplete"
    asked = [sent for sent in run.grid.sent if sent.metadata.dst_node_id == 11]
    assert [sent.metadata.message_type for sent in asked].count(ACTIONS["train_classifier"]) == 1
    privacy = run.json("privacy.json")["methods"]["fedavg"]["sites"]
    assert privacy["east"]["spent"] is None
    assert len(privacy["north"]["spent"]) == 3


def test_a_run_that_stopped_still_shows_what_was_spent(run_config):
    run = Run(run_config, "methods={dp-sgd: {rounds: 3, local_steps: 2}}")
    run.grid.fail |= {(10, ACTIONS["evaluate"]): "crash", (12, ACTIONS["evaluate"]): "crash"}
    with pytest.raises(FederationError):
        run.go()
    account = run.json("privacy.json")["methods"]["dp-sgd"]["sites"]["east"]
    assert sum(event["steps"] for event in account["spent"]) == 4
    assert account["epsilon"] == pytest.approx(3.0, abs=0.1)


def test_sites_spend_before_they_compute_and_refuse_what_was_not_reserved(run_config):
    run = Run(run_config, "methods={dp-sgd: {rounds: 1}}")
    run.go()
    request = next(sent for sent in run.grid.sent if sent.metadata.message_type == ACTIONS["train_classifier"])
    run.grid.push_messages([request])
    error = run.grid.replies[-1].content["cadp-error"]
    assert error["code"] == 301
    assert "paid for by the plan's retry reserve" in error["text"]


def test_a_real_site_sends_an_errors_number_alone(run_config, tiny):
    from flwr.clientapp import ClientApp

    from cadp_fl.errors import DataError
    from cadp_fl.federated.flower_client import decode_reply, register

    app = ClientApp()

    class Broken:
        def __init__(self, error):
            self.error = error

        def call(self, request):
            raise self.error

    for error, code in ((DataError("patient 42 is odd"), 202), (ValueError("patient 42"), 100)):
        app = ClientApp()
        register(app, lambda context, error=error: Broken(error))
        grid = LocalGrid(app, 1, run_config)
        transport = GridTransport(grid, timeout=1)
        from cadp_fl.site.protocol import Request

        answers = {}
        assert not transport.exchange({10: Request("describe")}, group="x", on_answer=answers.__setitem__)
        assert answers[10].code == code
        assert "42" not in str(answers[10])
        assert "42" not in str(grid.replies[-1].content)
        assert isinstance(decode_reply(grid.replies[-1].content), type(answers[10]))


def test_a_host_apps_own_handlers_stay():
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    from cadp_fl.federated.flower_client import register

    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict({"mine": ConfigRecord({"ok": 1})}), reply_to=message)

    register(app, lambda context: None)
    grid = LocalGrid(app, 1, {})
    grid.push_messages([Message(RecordDict(), dst_node_id=10, message_type="train")])
    assert grid.replies[0].content["mine"]["ok"] == 1

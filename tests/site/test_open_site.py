"""Every check of site init and of doctor holds again whenever a site is opened, and at every reservation."""

import json
import os

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cadp_fl.cli.main import app
from cadp_fl.config import EvaluationPolicy, FlowConfig, PolicyConfig, load_policy, load_site
from cadp_fl.data.partition import SiteData
from cadp_fl.doctor.finding import examine
from cadp_fl.doctor.site import SITE_CHECKS, Site
from cadp_fl.errors import BudgetError, CadpError, ConfigError, EditedPolicyError, InputError
from cadp_fl.evaluation.noised import evaluation_event
from cadp_fl.flow.storage import FlowCard, flow_sha256, save_flow
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Conditions, Plan
from cadp_fl.site.agent import Agent, command
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.mode import Mode
from cadp_fl.site.open_site import open_site, read_records
from cadp_fl.site.privacy_filter import PrivacyFilter
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from tests.site.agents import make, served
from tests.site.test_site import dataset

OWN = ["--invitation", "invitation.yaml", "--data", "mrs-smith.npz", "--dataset", "chest", "--classes", "no,yes"]
ANSWERS = ["--population", "lungs", "--unit", "record", "--epsilon", "3", "--delta", "1e-5", "--labels", "public"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a site with a file of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "invitation.yaml").write_text("federation: lungs\naddress: hub.example.org:9443\n")
    rng = np.random.default_rng(0)
    arrays = {"train_images": rng.integers(0, 256, (400, 8, 8), dtype=np.uint8), "train_labels": np.arange(400) % 2}
    np.savez(tmp_path / "mrs-smith.npz", **arrays, train_ids=np.arange(400))
    done = CliRunner().invoke(app, ["site", "init", "north", *OWN, *ANSWERS])
    assert done.exit_code == 0, done.output
    folder = SiteFolder(tmp_path / "north")
    _edit(folder.policy, min_class_units=0, review=False)
    return folder


@pytest.fixture
def flow(tmp_path):
    return _flow(tmp_path, ("no", "yes"))


def _flow(folder, classes):
    from cadp_fl.data.schema import Schema

    config = FlowConfig(scales=[{"blocks": 1, "channels": 4}], dense={"blocks": 1, "width": 8})
    card = FlowCard(config, Schema(name="chest", shape=(1, 8, 8), classes=classes), 0, "public")
    save_flow(folder / "flow.safetensors", card.build(), card)
    return folder / "flow.safetensors"


def _edit(path, **changes):
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def _allow(folder, flow):
    from cadp_fl.flow.storage import load_flow

    _edit(folder.policy, public_flows=[flow_sha256(load_flow(flow)[0])])


def _log(folder):
    return [json.loads(line) for line in folder.audit.read_text().splitlines()]


def _by_hand(flow, folder, output, **options):
    given = {"epsilon": 1.0, "delta": 1e-6, "clip_norm": 4.0, "latent_dims": 4}
    return make_release(flow, folder.path, output, ReleaseOptions(**given | options))


def _open(folder):
    config = load_site(folder.config)
    return open_site(folder, config, load_policy(folder.policy), read_records(config), noise=NoiseSource.from_entropy())


@pytest.mark.parametrize(
    ("edit", "reason"),
    [({"dataset": None}, "a name that all sites share"), ({"classes": None}, "no class that its records alone show")],
    ids=["dataset", "classes"],
)
def test_a_site_says_nothing_of_itself_that_is_read_from_its_records(own, edit, reason):
    settings = yaml.safe_load(own.config.read_text())
    for key in edit:
        settings.pop(key, None)
        settings["data"].pop(key, None)
    own.config.write_text(yaml.safe_dump(settings))
    for opening in (lambda: Agent(own), lambda: _open(own)):
        with pytest.raises(ConfigError, match=reason):
            opening()
    (records,) = [check for check in SITE_CHECKS if check.name == "records"]
    assert [finding.state for finding in examine([records], Site(own))] == ["fault"]


@pytest.mark.parametrize(
    "changes",
    [{"delta": 1e-2}, {"evaluation": {"epsilon": 3.0, "delta": 0.12}}],
    ids=["of all that leaves", "of evaluations"],
)
def test_a_delta_that_is_too_large_for_the_units_is_refused_at_opening_and_at_a_reload(own, changes):
    with served(own):
        _edit(own.policy, **changes)
        with pytest.raises(CadpError, match=r"at most 1 / \("):
            command(own, "reload")
    with pytest.raises(BudgetError, match=r"at most 1 / \("):
        Agent(own)


def test_the_deltas_of_evaluations_are_bounded_together(tmp_path):
    """Each of sixty plans is small enough by itself, and nothing of them is written down."""
    data = SiteData(dataset(200, 0), dataset(50, 1))
    policy = PolicyConfig(
        population="p",
        unit="record",
        epsilon=10.0,
        delta=1e-5,
        min_units=10,
        evaluation=EvaluationPolicy(epsilon=100.0, delta=0.12, count=100),
    )
    ledger = DurableLedger.create(tmp_path / "ledger.db", population="p", unit="record")
    spending = PrivacyFilter(
        ledger, policy, units=len(data.train), test_units=len(data.test), conditions=Conditions(), mode=Mode.DEPLOYED
    )
    event = evaluation_event(1.0, 1e-6, 3)
    for number in range(60):
        plan = Plan("m", (event,), 1e-6, labels="covered", split="test", run=f"r{number}")
        with pytest.raises(BudgetError):
            spending.reserve(plan)
    assert ledger.committed("test").delta == 0


def test_a_policy_with_evaluations_and_nobody_to_test_on_is_a_warning(own, tmp_path):
    done = CliRunner().invoke(app, ["site", "init", "east", *OWN, *ANSWERS, "--test-fraction", "0"])
    assert done.exit_code == 0, done.output
    east = SiteFolder(tmp_path / "east")
    _edit(east.policy, evaluation={"epsilon": 3.0, "delta": 1e-5})
    (records,) = [check for check in SITE_CHECKS if check.name == "records"]
    found = [finding for finding in examine([records], Site(east)) if finding.state == "warning"]
    assert ["no test units" in finding.found for finding in found] == [True]


@pytest.mark.parametrize("name", ["policy", "config", "ledger", "audit", "outbox"])
def test_an_agent_does_not_start_where_others_reach_its_files(own, name):
    path = getattr(own, name)
    path.touch(0o600)
    path.chmod(path.stat().st_mode | 0o004)
    with pytest.raises(InputError, match=r"Others may reach .*chmod go-rwx"):
        Agent(own)


def test_an_agent_does_not_start_under_another_name_than_its_supernode(own):
    _edit(own.node.config, site="east")
    with pytest.raises(ConfigError, match="A site has one name"):
        Agent(own)


def test_a_release_by_hand_of_a_sites_folder_is_in_its_audit_log(own, flow, tmp_path):
    _allow(own, flow)
    made = _by_hand(flow, own, tmp_path / "bundle")
    assert (made.manifest.site, made.manifest.dataset.name) == ("north", "chest")
    first, reserve, release = _log(own)
    assert (first["what"], first["uid"], len(first["policy"])) == ("by-hand", os.getuid(), 64)
    assert [line["action"] for line in (reserve, release)] == ["reserve", "release"]
    for line in (reserve, release):
        assert (line["what"], line["by"], line["outcome"]) == ("request", "hand", "answered")
        assert line["peer"]["uid"] == os.getuid()
        assert line["run"]
    assert release["output"] == str(tmp_path / "bundle")


def test_a_refused_release_by_hand_is_in_the_audit_log(own, flow, tmp_path):
    with pytest.raises(CadpError):
        _by_hand(flow, own, tmp_path / "bundle")  # the flow is not one of the policy's
    last = _log(own)[-1]
    assert (last["action"], last["outcome"], last["code"]) == ("reserve", "refused", 313)
    assert not (tmp_path / "bundle").exists()


def test_nothing_leaves_by_hand_that_cannot_be_logged(own, flow, tmp_path):
    _allow(own, flow)
    own.audit.mkdir()
    with pytest.raises(CadpError, match="audit log"):
        _by_hand(flow, own, tmp_path / "bundle")
    assert DurableLedger.as_found(own.ledger).plans() == ()
    own.audit.rmdir()
    own.audit.write_text("")
    own.audit.chmod(0o400)
    if os.getuid() != 0:
        with pytest.raises(CadpError, match="audit log"):
            _by_hand(flow, own, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_ledger_apart_has_an_audit_log_beside_it(own, flow, tmp_path):
    policy, ledger = tmp_path / "apart" / "policy.yaml", tmp_path / "apart" / "ledger.db"
    policy.parent.mkdir()
    _allow(own, flow)
    policy.write_text(own.policy.read_text())
    DurableLedger.create(ledger, population="lungs", unit="record")
    given = {"epsilon": 1.0, "delta": 1e-6, "clip_norm": 4.0, "latent_dims": 4, "policy": policy, "ledger": ledger}
    make_release(flow, tmp_path / "mrs-smith.npz", tmp_path / "bundle", ReleaseOptions(**given))
    lines = [json.loads(line) for line in (tmp_path / "apart" / "audit.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["by-hand", "request", "request"]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("apart", [True, False])
def test_a_policy_that_was_edited_holds_for_no_release_by_hand_until_it_is_reloaded(
    own, flow, tmp_path, running, apart
):
    """Whether the agent runs, or has ended since, and whichever way policy and ledger are named."""

    def release(output):
        if not apart:
            return _by_hand(flow, own, output)
        given = {"epsilon": 1.0, "delta": 1e-6, "clip_norm": 4.0, "latent_dims": 4}
        options = ReleaseOptions(**given, policy=own.policy, ledger=own.ledger)
        return make_release(flow, tmp_path / "mrs-smith.npz", output, options)

    def refused():
        _edit(own.policy, epsilon=90.0)
        with pytest.raises(EditedPolicyError):
            release(tmp_path / "a")
        last = _log(own)[-1]
        assert (last["what"], last["outcome"], last["code"]) == ("by-hand", "refused", 320)

    _allow(own, flow)
    with served(own):
        if running:
            refused()
            command(own, "reload")
            release(tmp_path / "b")
    if not running:
        refused()
        with served(own):
            pass
        release(tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").is_dir()


def test_a_sites_policy_and_ledger_go_together(own, flow, tmp_path):
    policy, ledger = tmp_path / "policy.yaml", tmp_path / "ledger.db"
    policy.write_text(own.policy.read_text().replace("epsilon: 3", "epsilon: 90"))
    DurableLedger.create(ledger, population="lungs", unit="record")
    given = {"epsilon": 1.0, "delta": 1e-6, "clip_norm": 4.0}
    for files in ({"policy": policy, "ledger": own.ledger}, {"policy": own.policy, "ledger": ledger}):
        with pytest.raises(InputError, match="lie in its folder, and go together"):
            make_release(flow, tmp_path / "mrs-smith.npz", tmp_path / "a", ReleaseOptions(**given, **files))
    with pytest.raises(InputError, match="Found one of them beside it"):
        _by_hand(flow, own, tmp_path / "a", policy=policy, ledger=own.ledger)


def test_a_reload_says_and_logs_what_it_changes_and_the_totals_before_and_after(own):
    said = []
    with served(own, announce=said.append):
        assert _log(own)[0]["totals"] == {"epsilon": 3.0, "delta": 1e-5}
        _edit(own.policy, epsilon=30.0, review=True, evaluation={"epsilon": 2.0, "delta": 1e-5})
        done = CliRunner().invoke(app, ["site", "reload", str(own.path)])
    assert "epsilon from 3 to 30" in done.output
    assert "evaluation.delta from none to 1e-05" in done.output
    assert "review" in done.output
    line = next(line for line in _log(own) if line["what"] == "reload")
    assert line["changes"]["totals"]["epsilon"] == [3.0, 30.0]
    assert {"epsilon", "review", "evaluation.epsilon", "evaluation.count"} <= set(line["changes"]["keys"])
    assert any("epsilon from 3 to 30" in each for each in said)


def test_a_start_says_which_totals_an_edit_changed_while_no_agent_ran(own):
    said = []
    with served(own):
        pass
    _edit(own.policy, epsilon=30.0)
    with served(own, announce=said.append):
        pass
    assert any("edited since an agent last read it" in each and "epsilon from 3 to 30" in each for each in said)
    said.clear()
    with served(own, announce=said.append):
        pass
    assert not any("edited" in each for each in said)


def test_exact_results_beside_covered_labels_are_a_warning_of_their_own(tmp_path):
    folder = make(tmp_path / "north", labels="covered")
    (policy,) = [check for check in SITE_CHECKS if check.name == "policy"]
    found = [finding.found for finding in examine([policy], Site(folder))]
    assert any("labels of test units" in each for each in found)

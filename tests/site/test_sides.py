"""Who is tested on at a real site: every command reads the same people on the same side, for good."""

import hashlib
import os
import secrets
from dataclasses import replace

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cadp_fl.cli.main import app
from cadp_fl.config import FlowConfig, Invitation, PolicyConfig, SiteConfig, load_policy, load_site, parse
from cadp_fl.data.schema import Schema
from cadp_fl.deployment.site_setup import make_site
from cadp_fl.doctor.finding import examine
from cadp_fl.doctor.site import SITE_CHECKS, Site
from cadp_fl.errors import CadpError, DataError, EvaluationError, InputError, LedgerError, TotalBudgetError
from cadp_fl.evaluation.noised import evaluation_event
from cadp_fl.flow.storage import FlowCard, flow_sha256, save_flow
from cadp_fl.privacy.chain import Chain
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import GaussianSum
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Allowance, Conditions, Plan
from cadp_fl.release.bundle import open_bundle
from cadp_fl.site.agent import Agent
from cadp_fl.site.open_site import open_site, read_records, records_of
from cadp_fl.site.protocol import Request
from cadp_fl.site.register import register_sides
from cadp_fl.site.requests import ReserveRequest
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from tests.site.agents import served

COUNT = 600
SUM = GaussianSum(stage="moments", clip_norm=1.0, noise_std=20.0)
POLICY = {
    "population": "chest",
    "unit": "record",
    "epsilon": 3.0,
    "delta": 1e-5,
    "labels": "public",
    "review": False,
    "min_class_units": 0,
    "evaluation": {"epsilon": 3.0, "delta": 1e-5},
}


def _write(path, ids, *, by="ids", test=None):
    """Write an export: each record's image shows its id, so that a test sees who is where."""
    arrays = {}
    for split, chosen in (("train", ids), ("test", test)):
        if chosen is None:
            continue
        images = np.zeros((len(chosen), 8, 8), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = chosen // 256, chosen % 256
        arrays |= {f"{split}_images": images, f"{split}_labels": chosen % 2}
        if by is not None:
            arrays[f"{split}_{by}"] = chosen
    np.savez(path, **arrays)


def _ids(records):
    return set((256 * records.images[:, 0, 0, 0].astype(int) + records.images[:, 0, 0, 1]).tolist())


@pytest.fixture
def flow(tmp_path):
    config = FlowConfig(scales=[{"blocks": 1, "channels": 4}], dense={"blocks": 1, "width": 8})
    card = FlowCard(config, Schema(name="chest", shape=(1, 8, 8), classes=("a", "b")), 0, "public")
    save_flow(tmp_path / "flow.safetensors", card.build(), card)
    return tmp_path / "flow.safetensors"


@pytest.fixture
def made(tmp_path):
    """Return a function that writes an export and makes a site of it."""

    def make(ids=None, flow=None, test_fraction=None, **export):
        _write(tmp_path / "north.npz", np.arange(COUNT) if ids is None else ids, **export)
        data = {"source": "medmnist", "path": str(tmp_path / "north.npz"), "classes": ["a", "b"]}
        settings = {"site": "north", "dataset": "chest", "device": "cpu", "data": data}
        settings |= {} if test_fraction is None else {"test_fraction": test_fraction}
        allowed = {"public_flows": [flow_sha256(FlowCard.build(_card(flow)))]} if flow else {}
        policy = parse(PolicyConfig, POLICY | allowed)
        invitation = parse(Invitation, {"federation": "t", "address": "localhost:9443"})
        return make_site(tmp_path / "north", parse(SiteConfig, settings), policy, invitation).folder

    return make


def _card(path):
    from cadp_fl.flow.storage import load_flow

    return load_flow(path)[1]


def _opened(folder):
    config, policy = load_site(folder.config), load_policy(folder.policy)
    return open_site(folder, config, policy, read_records(config), noise=NoiseSource.from_entropy())


def _ids_by_side(folder):
    data = _opened(folder).context.data
    return _ids(data.train), _ids(data.test)


def _edit(path, **changes):
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def _by_hand(flow, data, output, **options):
    given = {"epsilon": 1.0, "delta": 1e-6, "clip_norm": 4.0, "latent_dims": 4}
    make_release(flow, data, output, ReleaseOptions(**given | options))
    return open_bundle(output).manifest.records


def _plan(units, event=SUM, method="m", run="r", delta=1e-6):
    return Plan(method, (event,), delta, labels="public" if units == "train" else "covered", split=units, run=run)


@pytest.mark.parametrize("by", ["patients", "ids"])
def test_agent_and_release_by_hand_and_doctor_agree_on_who_is_tested_on(made, flow, tmp_path, by):
    folder = made(flow=flow, by=by)
    train, test = _ids_by_side(folder)
    assert train | test == set(range(COUNT))
    assert 60 < len(test) < 180
    assert not train & test
    apart = {"policy": folder.policy, "ledger": folder.ledger}
    assert _by_hand(flow, tmp_path / "north.npz", tmp_path / "a", **apart) == len(train)
    assert _by_hand(flow, folder.path, tmp_path / "b") == len(train)
    (records,) = [check for check in SITE_CHECKS if check.name == "records"]
    said = examine([records], Site(folder))[0].found
    assert f"{len(train)} training and {len(test)} test units" in said
    assert f"0.2 of the {'patients' if by == 'patients' else 'records'}" in said


def test_a_release_by_hand_of_an_export_in_another_order_holds_out_the_same_people(made, flow, tmp_path):
    folder = made(flow=flow)
    train, _ = _ids_by_side(folder)
    half = np.arange(COUNT)[::-1][: COUNT // 2]
    _write(tmp_path / "half.npz", half)
    released = _by_hand(flow, tmp_path / "half.npz", tmp_path / "a", policy=folder.policy, ledger=folder.ledger)
    assert released == len(train & set(half.tolist()))


def test_rows_that_are_prepended_sorted_or_exported_again_move_nobody(made, tmp_path):
    folder = made(ids=np.random.default_rng(0).permutation(COUNT))
    train, test = _ids_by_side(folder)
    for ids in (np.arange(COUNT), np.append(COUNT + 5, np.arange(COUNT)), np.arange(COUNT + 50)[::-1]):
        _write(tmp_path / "north.npz", ids)
        now_train, now_test = _ids_by_side(folder)
        assert not now_train & test
        assert not now_test & train


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.0, 0.2000001])
def test_an_edited_test_fraction_is_refused_wherever_the_site_is_opened(made, flow, tmp_path, fraction):
    folder = made(flow=flow)
    _edit(folder.config, test_fraction=fraction)
    for opening in (lambda: Agent(folder), lambda: _by_hand(flow, folder.path, tmp_path / "a")):
        with pytest.raises(LedgerError, match="is fixed when a ledger is made"):
            opening()
    (records,) = [check for check in SITE_CHECKS if check.name == "records"]
    assert examine([records], Site(folder))[0].state == "fault"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"by": "ids"}, {"by": None}, "no ids any more"),
        ({"by": "patients"}, {"by": "ids"}, "no patients any more"),
        ({"by": "ids", "test": np.arange(COUNT, COUNT + 200)}, {"by": "ids"}, "no test split any more"),
        ({"by": "ids"}, {"by": "ids", "test": np.arange(COUNT, COUNT + 200)}, "a test split of its own now"),
    ],
    ids=["ids gone", "patients gone", "split gone", "split added"],
)
def test_records_that_would_change_the_rule_are_refused(made, flow, tmp_path, before, after, reason):
    folder = made(flow=flow, **before)
    _opened(folder)
    _write(tmp_path / "north.npz", np.arange(COUNT), **after)
    apart = {"policy": folder.policy, "ledger": folder.ledger}
    for opening in (
        lambda: Agent(folder),
        lambda: _by_hand(flow, folder.path, tmp_path / "a"),
        lambda: _by_hand(flow, tmp_path / "north.npz", tmp_path / "a", **apart),
    ):
        with pytest.raises(DataError, match=reason):
            opening()
    assert DurableLedger.as_found(folder.ledger).plans() == ()


def test_the_sources_own_split_is_that_of_the_sites_own_file(made, flow, tmp_path):
    """Another file of the same people may have a test patient among those to train on."""
    folder = made(flow=flow, by=None, test=np.arange(COUNT, COUNT + 200))
    assert _ids_by_side(folder) == (set(range(COUNT)), set(range(COUNT, COUNT + 200)))
    apart = {"policy": folder.policy, "ledger": folder.ledger}
    _write(tmp_path / "other.npz", np.arange(200, COUNT + 200), by=None, test=np.arange(200))
    with pytest.raises(InputError, match="another file may split people in another way"):
        _by_hand(flow, tmp_path / "other.npz", tmp_path / "a", **apart)
    assert _by_hand(flow, tmp_path / "north.npz", tmp_path / "a", **apart) == COUNT


def test_without_ids_nobody_is_tested_on_and_no_evaluation_is_answered(made, flow, tmp_path):
    with pytest.raises(DataError, match="neither ids nor a test split"):
        made(flow=flow, by=None)
    folder = made(flow=flow, by=None, test_fraction=0)
    site = _opened(folder)
    assert (len(site.context.data.train), len(site.context.data.test)) == (COUNT, 0)
    with pytest.raises(EvaluationError, match="This site has none"):
        site.context.privacy_filter.reserve(_plan("test", evaluation_event(1.0, 1e-6, 2)))
    assert _by_hand(flow, folder.path, tmp_path / "a") == COUNT
    _edit(folder.config, test_fraction=0.2)
    with pytest.raises(LedgerError, match="is fixed when a ledger is made"):
        _opened(folder)


def test_a_rehearsals_ledger_is_not_one_for_records_of_ones_own(made, tmp_path):
    from tests.site.agents import make

    (tmp_path / "r").mkdir()
    rehearsal, own = make(tmp_path / "r" / "north"), made()
    config = yaml.safe_load(own.config.read_text())
    for folder, settings in (
        (rehearsal, config),
        (own, {"site": "north", "rehearsal": str(tmp_path / "r" / "study.yaml")}),
    ):
        folder.config.write_text(yaml.safe_dump(settings))
        with pytest.raises(CadpError, match=r"(a|A) rehearsal"):
            _opened(folder)


def test_a_rehearsal_whose_study_was_edited_is_refused(tmp_path):
    from tests.site.agents import STUDY, make

    folder = make(tmp_path / "north")
    _opened(folder)
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.replace("seed: 7", "seed: 7\nrelease_note: x").replace("release_note: x\n", ""))
    _opened(folder)
    study.write_text(STUDY.replace("seed: 7", "seed: 8"))
    with pytest.raises(DataError, match="bring its study back as it was"):
        _opened(folder)


def _of_format_1(folder):
    """Put a ledger in place of a site's, as an older version made it."""
    for name in ("ledger.db", "ledger.db.mark"):
        folder.ledger.with_name(name).unlink()
    terms = {"format": 1, "ledger": secrets.token_hex(16), "population": "chest", "unit": "record"}
    Chain.create(folder.ledger, {"terms": terms | {"records_per_unit": 1}})
    return DurableLedger.as_found(folder.ledger)


def test_a_ledger_that_does_not_say_who_was_tested_on_opens_with_one_budget_for_all(made):
    """What was given out about test units may be of people that a release by hand took for training units."""
    folder = made()
    ledger = _of_format_1(folder)
    tested = replace(_plan("test", evaluation_event(2.5, 1e-6, 2)), conditions=Conditions("entropy", ("a", "b")))
    ledger.reserve(tested, Allowance(3.0, 1e-5))
    assert ledger.committed("train") == ledger.committed("test")
    site = _opened(folder)
    assert (len(site.context.data.train), len(site.context.data.test)) == (COUNT, 0)
    big = SUM.model_copy(update={"noise_std": 8.0})
    with pytest.raises(TotalBudgetError, match="All plans together stay within"):
        site.context.privacy_filter.reserve(_plan("train", big))
    with pytest.raises(EvaluationError):
        site.context.privacy_filter.reserve(_plan("test", evaluation_event(0.1, 1e-6, 2), run="s"))
    with pytest.raises(EvaluationError):
        site.context.privacy_filter.spend(Request("evaluate", {}, run="r"), "m", tested.events[0], split="test")
    site.context.privacy_filter.reserve(_plan("train"))
    (records,) = [check for check in SITE_CHECKS if check.name == "records"]
    assert any("its format is 1" in finding.found for finding in examine([records], Site(folder)))
    shown = CliRunner().invoke(app, ["site", "ledger", "show", str(folder.path)])
    assert "counts for training units too" in shown.output


def test_terms_say_who_is_tested_on_in_words_and_for_good(made):
    folder = made()
    ledger = DurableLedger.as_found(folder.ledger)
    rule = ledger.terms.split
    assert (ledger.terms.format, rule.rule, rule.ids, rule.fraction) == (2, "hash", "ids", 0.2)
    stored = ledger.links()[0].entry["terms"]["split"]
    assert stored == {"rule": "hash", "ids": "ids", "fraction": 0.2, "salt": rule.salt}


TEST = np.arange(COUNT, COUNT + 200)


def _reserve(folder, run="r"):
    plan = _plan("train", run=run).to_json()
    return _opened(folder).call(Request("reserve", ReserveRequest(plans=(plan,)).model_dump(mode="json"), run=run))


@pytest.mark.parametrize("by", ["patients", "ids", None], ids=["patients", "ids", "what records show"])
def test_a_test_split_that_an_export_draws_again_is_refused_once_a_plan_is_reserved(made, flow, tmp_path, by):
    folder = made(flow=flow, by=by, test=TEST)
    everyone = np.arange(COUNT + 200)
    _write(tmp_path / "north.npz", everyone[200:], by=by, test=everyone[:200])
    _reserve(folder)  # nothing was reserved before, so the split could still be another one
    _write(tmp_path / "north.npz", everyone[:COUNT], by=by, test=TEST)
    what = "400 patients" if by == "patients" else "400 records"
    apart = {"policy": folder.policy, "ledger": folder.ledger}
    for opening in (
        lambda: Agent(folder),
        lambda: _by_hand(flow, folder.path, tmp_path / "a"),
        lambda: _by_hand(flow, tmp_path / "north.npz", tmp_path / "a", **apart),
    ):
        with pytest.raises(DataError, match=f"stays on the side.*{what} changed sides"):
            opening()
    (records,) = [check for check in SITE_CHECKS if check.name == "records"]
    assert examine([records], Site(folder))[0].state == "fault"
    _write(tmp_path / "north.npz", everyone[200:], by=by, test=everyone[:200])
    assert len(_ids_by_side(folder)[0]) == COUNT


def test_who_is_new_may_be_on_either_side_and_stays_there(made, tmp_path):
    folder = made(by="ids", test=TEST)
    _reserve(folder)
    first = DurableLedger.as_found(folder.ledger).registered()
    more = np.arange(COUNT + 200, COUNT + 220)
    _write(tmp_path / "north.npz", np.append(np.arange(300), more[:10]), by="ids", test=np.append(TEST[:9], more[10:]))
    _opened(folder)
    agent = Agent(folder)
    os.close(agent.lock_file)
    ledger = DurableLedger.as_found(folder.ledger)
    assert ledger.registered() != first
    assert len(list(folder.path.glob("ledger.db.sides-*"))) == 1
    for moved in (more, np.arange(590, 600)):  # new ones, and some that the last export left out
        _write(tmp_path / "north.npz", np.arange(300), by="ids", test=np.append(TEST[:9], moved))
        with pytest.raises(DataError, match="10 records changed sides"):
            _opened(folder)


def test_ids_that_come_later_do_not_hide_who_moved_and_may_not_go_again(made, tmp_path):
    folder = made(by=None, test=TEST)
    _reserve(folder)
    everyone = np.arange(COUNT + 200)
    _write(tmp_path / "north.npz", everyone[200:], by="ids", test=everyone[:200])
    with pytest.raises(DataError, match="400 records changed sides"):
        _opened(folder)
    _write(tmp_path / "north.npz", everyone[:COUNT], by="ids", test=TEST)
    _reserve(folder, run="s")
    _write(tmp_path / "north.npz", everyone[:COUNT], by=None, test=TEST)
    with pytest.raises(DataError, match="no ids any more"):
        _opened(folder)


def test_a_picture_that_was_on_both_sides_from_the_start_moves_nobody(made, tmp_path):
    folder = made(by=None, test=np.append(TEST, 5))
    _reserve(folder)
    _opened(folder)
    _write(tmp_path / "north.npz", np.arange(COUNT), by=None, test=TEST)
    _opened(folder)


def test_a_register_that_is_gone_or_edited_is_refused_and_its_ledger_shows_no_hash_of_anybody(made, tmp_path):
    folder = made(by="patients", test=TEST)
    _reserve(folder)
    (register,) = folder.path.glob("ledger.db.sides-*")
    assert register.stat().st_mode & 0o777 == 0o600
    entries = [link.entry for link in DurableLedger.as_found(folder.ledger).links()]
    assert [entry for entry in entries if "sides" in entry] == [
        {"sides": {"sha256": hashlib.sha256(register.read_bytes()).hexdigest()}}
    ]
    whole = register.read_bytes()
    register.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LedgerError, match="was changed"):
        _opened(folder)
    register.unlink()
    with pytest.raises(LedgerError, match="There is none at"):
        _opened(folder)
    register.write_bytes(whole)
    _opened(folder)


def test_two_processes_that_write_a_register_at_once_lose_nobody(made, tmp_path, monkeypatch):
    folder = made(by="ids", test=TEST)
    _reserve(folder)
    config, ledger = load_site(folder.config), DurableLedger.as_found(folder.ledger)

    def grown(train):
        _write(tmp_path / "north.npz", train, by="ids", test=TEST)
        return records_of(ledger, config, read_records(config))

    mine, others = grown(np.append(np.arange(10), 900)), grown(np.append(np.arange(10), 901))
    real, raced = DurableLedger.register, []

    def late(self, sha256, *, before):
        if not raced:
            raced.append(True)
            register_sides(DurableLedger.as_found(folder.ledger), others)
        return real(self, sha256, before=before)

    monkeypatch.setattr(DurableLedger, "register", late)
    register_sides(ledger, mine)
    for one in (900, 901):
        _write(tmp_path / "north.npz", np.arange(10), by="ids", test=np.append(TEST, one))
        with pytest.raises(DataError, match="1 record changed sides"):
            records_of(ledger, config, read_records(config))


def _shown(folder, *options):
    result = CliRunner().invoke(app, ["site", "ledger", "show", str(folder.path), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_ledger_is_shown_whatever_its_policy_file_is(made):
    folder = made()
    assert "1 entry: no plan was reserved, and nothing is spent." in _shown(folder)
    _reserve(folder)
    assert "On training units, all plans together" in _shown(folder)
    assert "NOT in force" not in _shown(folder)
    with served(folder):
        _edit(folder.policy, epsilon=9.0)
        assert "which was edited and is NOT in force until it is reloaded" in _shown(folder)
    whole = folder.policy.read_text()
    for broken, reason in (
        (f"{whole}\nepsilon: 1\n", "a key stands once"),
        (whole.replace("chest", "other"), "one population"),
    ):
        folder.policy.write_text(broken)
        shown = " ".join(_shown(folder).split())
        assert "No limits are shown, since policy.yaml does not fit" in shown
        assert reason in shown
        assert "On training units, all plans together: epsilon" in shown
        assert "of the policy's" not in shown

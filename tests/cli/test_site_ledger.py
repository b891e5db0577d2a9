"""The commands over a site's ledger: what they print, and with which status they end."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest

from cadp_fl.errors import LedgerError
from cadp_fl.privacy.claims import EXACT_TEST_RESULTS
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.plan import Allowance, Plan
from cadp_fl.site.ledger_account import account_of
from tests.cli.test_cli import call
from tests.privacy.ledger_events import LAPLACE, STEP, WEIGHTS
from tests.site.agents import make

POLICY = "population: chest\nunit: record\nepsilon: 3\ndelta: 1.0e-5\n"


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: call(monkeypatch, capsys, "site", "ledger", *arguments)


@pytest.fixture
def path(tmp_path):
    ledger = DurableLedger.create(tmp_path / "ledger.db", population="chest", unit="record")
    limit = Allowance(10.0, 1e-4)
    ledger.reserve(Plan("cadp", (WEIGHTS, LAPLACE), 1e-6, run="[red]\x1b[31m"), limit)
    ledger.reserve(Plan("dp-sgd", (STEP.model_copy(update={"steps": 4}),), 2e-6, retry=Allowance(1.5, 1e-6)), limit)
    ledger.spend("dp-sgd", STEP, request="q", body="b")
    ledger.spend("dp-sgd", STEP, request="q", body="b")
    return tmp_path / "ledger.db"


@pytest.fixture
def policy(tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    return tmp_path / "policy.yaml"


def test_a_ledger_is_made_once_by_its_policy_or_by_its_terms(command, tmp_path, policy):
    code, out, _ = command("init", tmp_path / "one.db", "--policy", policy)
    assert (code, DurableLedger.open(tmp_path / "one.db", population="chest", unit="record").plans()) == (0, ())
    assert DurableLedger.as_found(tmp_path / "one.db").links()[0].hash in out
    terms = ("--population", "heart", "--unit", "patient", "--records-per-patient", 3)
    mark = tmp_path / "elsewhere" / "mark"
    mark.parent.mkdir()
    assert command("init", tmp_path / "two.db", *terms, "--mark", mark, "--quiet") == (0, "", "")
    assert DurableLedger.as_found(tmp_path / "two.db", mark=mark).terms.records_per_unit == 3
    code, _, err = command("init", tmp_path / "one.db", "--policy", policy)
    assert (code, err.count("\n")) == (1, 1)
    assert "never over another" in err


def test_a_ledger_on_a_file_system_of_the_network_is_made_with_a_warning(command, tmp_path, policy, monkeypatch):
    mount = SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")
    monkeypatch.setattr("psutil.disk_partitions", lambda all: [mount])
    code, _, err = command("init", tmp_path / "one.db", "--policy", policy, "--quiet")
    assert (code, err.count("\n")) == (0, 1)
    assert "is on a file system of the network (nfs4)" in err


@pytest.mark.parametrize(
    ("terms", "sentence"),
    [
        ((), "Found none; give --policy"),
        (("--population", "chest"), "Found none; give --policy"),
        (("--population", "chest", "--unit", "image"), "'unit'"),
        (("--population", "a b", "--unit", "record"), "'population'"),
        (("--population", "chest", "--unit", "patient"), "--records-per-patient"),
        (("--population", "chest", "--unit", "record", "--records-per-patient", 2), "--records-per-patient"),
        (("--policy", "policy.yaml", "--unit", "record"), "given once"),
    ],
)
def test_wrong_terms_are_one_sentence_and_make_nothing(command, tmp_path, terms, sentence):
    code, _, err = command("init", tmp_path / "ledger.db", *terms)
    assert (code, err.count("\n")) == (2, 1)
    assert sentence in err
    assert not list(tmp_path.iterdir())


def test_a_steward_sees_plans_reserves_spends_and_what_the_policy_leaves(command, path, policy):
    code, out, _ = command("show", path, "--policy", policy)
    assert code == 0
    assert "NOT protected" in out
    assert "2 of 4" in out
    assert "of the policy's 3 at 1e-05" in out
    assert "NO bound in all, since this is not protected: weights of a classifier" in out
    assert "\x1b" not in out
    assert "[red]\\x1b[31m/cadp" in out


def test_the_account_adds_up_with_retry_reserves(command, path, policy):
    _, out, _ = command("show", path, "--policy", policy, "--json")
    tree = json.loads(out)
    cadp, dp_sgd = tree["plans"]
    assert (cadp["guarantee"], cadp["epsilon"]) == ("none", 0.5)
    assert WEIGHTS.what in cadp["unprotected"]
    assert dp_sgd["epsilon"] > dp_sgd["epsilon_add_remove"] > dp_sgd["retry_reserve"]["epsilon"] == 1.5
    assert (dp_sgd["planned"], dp_sgd["spent"]) == ({"classifier": 4}, {"classifier": 2})
    assert tree["totals"]["train"]["epsilon"] == pytest.approx(cadp["epsilon"] + dp_sgd["epsilon"])
    assert tree["totals"]["train"]["limit"] == {"epsilon": 3.0, "delta": 1e-5}
    assert tree["totals"]["test"] == {"epsilon": 0.0, "delta": 0.0, "limit": None}


def test_a_plan_that_protects_nothing_shows_no_epsilon(command, path, policy):
    """0.00 would read as the best guarantee there is."""
    ledger = DurableLedger.open(path, population="chest", unit="record")
    ledger.reserve(Plan("fedavg", (WEIGHTS,), 1e-6, run="r"), Allowance(10.0, 1e-4))
    ledger.reserve(Plan("fedavg", (EXACT_TEST_RESULTS,), 1e-6, run="r", split="test"), None)
    code, out, _ = command("show", path)
    assert code == 0
    for name in ("r/fedavg ", "r/fedavg:test"):
        (line,) = [line for line in out.splitlines() if name in line]
        cells = [cell.strip() for cell in line.split("│")][2:7]
        assert cells == ["NOT protected", "-", "-", "-", "-"]
    assert "NO bound in all, since this is not protected: exact test results" in out
    code, out, _ = command("show", path, "--json")
    plans = {plan["plan"]: plan for plan in json.loads(out)["plans"]}
    for name in ("r/fedavg", "r/fedavg:test"):
        assert plans[name]["epsilon"] is plans[name]["epsilon_add_remove"] is None


def test_the_total_of_test_units_is_of_what_is_protected_where_something_is_not(command, path, tmp_path):
    ledger = DurableLedger.open(path, population="chest", unit="record")
    ledger.reserve(Plan("a", (EXACT_TEST_RESULTS,), 1e-6, run="r", split="test"), None)
    ledger.reserve(Plan("b", (LAPLACE,), 1e-6, run="r", split="test"), Allowance(10.0, 1e-4))
    code, out, _ = command("show", path)
    assert code == 0
    assert "On test units, what is protected of all plans together: epsilon 0.50" in out


def test_another_populations_policy_does_not_fit(path, tmp_path, command):
    (tmp_path / "other.yaml").write_text(POLICY.replace("chest", "heart"))
    code, _, err = command("show", path, "--policy", tmp_path / "other.yaml")
    assert (code, err.count("\n")) == (1, 1)
    assert "one population and one unit" in err


def test_verify_prints_the_head_and_knows_every_head_that_was(command, path):
    links = DurableLedger.as_found(path).links()
    code, out, _ = command("verify", path, "--expect-head", links[2].hash)
    assert code == 0
    assert f"Head: {links[-1].hash}" in out
    assert "The expected head is entry 2 of 4." in out
    tree = json.loads(command("verify", path, "--json")[1])
    assert (tree["entries"], tree["head"], tree["mark"]) == (5, links[-1].hash, 4)


def test_verify_finds_out_a_ledger_that_was_put_back_together_with_its_mark(command, path, tmp_path):
    backup = tmp_path / "backup"
    backup.mkdir()
    for name in ("ledger.db", "ledger.db.mark"):
        shutil.copy(path.with_name(name), backup)
    DurableLedger.as_found(path).spend("dp-sgd", STEP)
    head = DurableLedger.as_found(path).links()[-1].hash
    code, _, err = command("verify", backup / "ledger.db", "--expect-head", head)
    assert (code, err.count("\n")) == (1, 1)
    assert "does not hold" in err


def test_a_broken_ledger_is_one_sentence_whatever_is_asked(command, path):
    path.write_bytes(path.read_bytes().replace(b'"noise_scale":4.0', b'"noise_scale":9.0'))
    for name in ("verify", "show", "export"):
        code, out, err = command(name, path)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "does not have its hash" in err
    with pytest.raises(LedgerError):
        account_of(path)


def test_an_export_is_verified_by_the_rule_that_its_help_gives(command, path, tmp_path):
    code, out, _ = command("export", path)
    assert code == 0
    previous = "0" * 64
    for number, line in enumerate(map(json.loads, out.splitlines())):
        kept = {"entry": line["entry"], "number": number, "time": line["time"]}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        assert line["previous"] == previous
        assert line["hash"] == (previous := hashlib.sha256((previous + text).encode()).hexdigest())
    assert number == 4
    file = tmp_path / "ledger.jsonl"
    assert command("export", path, "--output", file)[0] == 0
    assert file.read_text() == out
    assert command("export", path, "--output", file)[0] == 2


def test_a_sites_folder_names_its_ledger_its_mark_and_its_policy(command, tmp_path):
    folder = make(tmp_path / "north")
    code, out, _ = command("show", str(folder.path), "--json")
    assert (code, json.loads(out)["totals"]["train"]["limit"]["epsilon"]) == (0, 10)
    code, out, _ = command("verify", str(folder.path), "--json")
    assert (code, json.loads(out)["entries"]) == (0, 1)

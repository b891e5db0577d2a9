"""Laws of making a site's folder."""

import os
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from cadp_fl.cli.main import app
from cadp_fl.config import SplitRule, load_node, load_policy, load_site
from cadp_fl.deployment.certificates import new_authority
from cadp_fl.errors import DataError, InputError, LedgerError
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.site.folder import SiteFolder, check_socket
from cadp_fl.site.keys import check_public_key, fingerprint, new_key_pair
from cadp_fl.site.open_site import read_records, records_of
from tests.site.agents import STUDY, make

CERTIFICATE = new_authority("lungs").certificate.decode()
ANSWERS = ["--population", "lungs", "--unit", "record", "--epsilon", "3", "--delta", "2e-5", "--labels", "public"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invitation = {"federation": "lungs", "address": "hub.example.org:9443", "certificate": CERTIFICATE}
    (tmp_path / "invitation.yaml").write_text(yaml.safe_dump(invitation))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def _init(*arguments, input=None):
    result = CliRunner().invoke(app, ["site", "init", *arguments], input=input)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_site_is_made_from_flags(here):
    result = _init("north", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml", *ANSWERS)
    folder = SiteFolder(here / "north")
    assert (load_policy(folder.policy).epsilon, load_policy(folder.policy).review) == (3, True)
    assert load_site(folder.config).rehearsal == here / "study.yaml"
    node = load_node(folder.node.config)
    assert (node.site, node.address, node.socket) == ("north", "hub.example.org:9443", folder.socket)
    assert folder.node.certificates.read_text() == CERTIFICATE
    assert DurableLedger.as_found(folder.ledger).terms.population == "lungs"
    assert fingerprint(folder.node.public_key("north").read_bytes()) in result.output


def test_what_a_careful_policy_refuses_is_said_with_its_key(here):
    result = _init("north", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml", *ANSWERS)
    text = " ".join(result.output.split())
    for what in ("a release of the method cadp", "fedavg and local: unprotected", "every test result"):
        assert what in text
    for key in (": made_flows", ": public_flows", ": unprotected", ": evaluation"):
        assert key in text
    (here / "policy.yaml").write_text(
        "population: lungs\nunit: record\nepsilon: 3\ndelta: 1.0e-5\nlabels: public\nunprotected: true\n"
        "declared_flows: true\nevaluation: {epsilon: 1, delta: 5.0e-5}\n"
    )
    open_one = _init("east", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml", "--policy", "policy.yaml")
    assert "It refuses this" not in open_one.output


def test_on_a_terminal_what_is_not_given_is_asked(here, monkeypatch):
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("cadp_fl.cli.agent.sys", terminal)
    with pytest.raises(DataError, match="do not; add patients"):  # digits have none
        _init(
            *("north", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml"),
            input="lungs\nn\npatient\n2\n3\n1e-5\ncovered\n",
        )
    assert not (here / "north").exists()
    result = _init(
        *("north", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml", "--epsilon", "3"),
        input="lungs\nn\nrecord\n1e-5\ncovered\n",
    )
    assert "at most 1 / (100 n) and n^-1.5 for the n units here: 2.0e-5" in result.output
    policy = load_policy(here / "north" / "policy.yaml")
    assert (policy.population, policy.unit, policy.delta, policy.labels) == ("lungs", "record", 1e-5, "covered")


def test_a_population_has_one_ledger(here, monkeypatch):
    monkeypatch.setattr("cadp_fl.cli.agent.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    with pytest.raises(InputError, match="one ledger, for good"):
        _init("north", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml", input="lungs\ny\n")
    assert not (here / "north").exists()
    result = _init("north", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml", *ANSWERS)
    assert "a new one of population 'lungs'" in result.output


def _scans(path, **more):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 8, 8), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=rng.integers(0, 2, 300), **more)


OWN = ("--invitation", "invitation.yaml", "--data", "mrs-smith.npz", "--dataset", "chest-xray", "--classes", "no, yes")


def test_own_records_are_named_by_the_federation_and_not_by_their_file(here):
    _scans(here / "mrs-smith.npz", train_ids=np.arange(300))
    result = _init("north", *OWN, *ANSWERS)
    folder = SiteFolder(here / "north")
    config = load_site(folder.config)
    data = records_of(DurableLedger.as_found(folder.ledger), config, read_records(config))
    assert data.train.schema.name == data.test.schema.name == "chest-xray"
    assert data.train.schema.classes == ("no", "yes")
    assert len(data.train) + len(data.test) == 300
    assert "A share of 0.2 of the records is tested on, by a hash of their ids" in result.output


def test_records_that_nothing_tells_apart_are_tested_on_only_by_nobody(here):
    _scans(here / "mrs-smith.npz")
    with pytest.raises(DataError, match="neither ids nor a test split"):
        _init("north", *OWN, *ANSWERS)
    assert not (here / "north").exists()
    result = _init("north", *OWN, *ANSWERS, "--test-fraction", "0")
    assert "Records: 300 training and 0 test records. Nobody is tested on" in result.output
    assert DurableLedger.as_found(here / "north" / "ledger.db").terms.split == SplitRule(rule="none")


def test_a_split_of_the_files_own_and_a_fraction_are_not_both_taken(here):
    split = {"test_images": np.zeros((50, 8, 8), np.uint8), "test_labels": np.arange(50) % 2}
    _scans(here / "mrs-smith.npz", train_ids=np.arange(300), test_ids=np.arange(300, 350), **split)
    with pytest.raises(DataError, match=r"Found one, and test_fraction 0\.3; leave that out"):
        _init("north", *OWN, *ANSWERS, "--test-fraction", "0.3")
    assert "The source's own test split is tested on." in _init("north", *OWN, *ANSWERS).output
    nobody = _init("south", *OWN, *ANSWERS, "--test-fraction", "0")
    assert "Records: 300 training and 0 test records. Nobody is tested on" in nobody.output


def test_a_record_as_the_unit_where_patients_have_several_is_cautioned_of(here):
    _scans(here / "mrs-smith.npz", train_patients=np.arange(300) // 2)
    assert "CAUTION: some patients have several records here" in _init("north", *OWN, *ANSWERS).output
    _scans(here / "mrs-smith.npz", train_patients=np.arange(300))
    assert "CAUTION" not in _init("south", *OWN, *ANSWERS).output


def test_a_mark_lies_in_a_folder_that_is_there(here):
    """Made where a volume is not mounted, it would lie on the ledger's own."""
    mark = here / "witness" / "north.mark"
    site = ("north", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml", *ANSWERS, "--mark", str(mark))
    with pytest.raises(LedgerError, match=r"is none at .*witness'; mount it"):
        _init(*site)
    assert [path.name for path in here.iterdir() if path.name not in ("invitation.yaml", "study.yaml")] == []
    mark.parent.mkdir()
    _init(*site)
    assert mark.is_file()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--data", "x.npz", *ANSWERS], "--classes"),
        (ANSWERS, "A site has records"),
        (["--data", "x.npz", "--rehearsal", "study.yaml", *ANSWERS], "A site has records"),
        (["--rehearsal", "study.yaml"], "give --population"),
        (["--rehearsal", "study.yaml", *ANSWERS, "--name", "west"], "north, east, south"),
        (["--rehearsal", "study.yaml", *ANSWERS, "--policy", "policy.yaml"], "given once"),
        (["--rehearsal", "study.yaml", *ANSWERS[:-4], "--delta", "0.1", *ANSWERS[-2:]], "1 / \\(100 n\\)"),
        (["--rehearsal", "study.yaml", *ANSWERS, "--group", "no-such-group"], "groupadd"),
        (["--rehearsal", "study.yaml", *ANSWERS, "--name", "North!"], "site"),
    ],
)
def test_what_does_not_fit_leaves_no_folder(here, arguments, reason):
    with pytest.raises(Exception, match=reason):
        _init("north", "--invitation", "invitation.yaml", *arguments)
    assert not (here / "north").exists()


def test_a_folder_is_never_made_over_another(here):
    make(here / "north")
    key = (here / "north" / "node" / "node.key").read_bytes()
    with pytest.raises(InputError, match="never written over"):
        _init("north", "--invitation", "invitation.yaml", "--rehearsal", "study.yaml", *ANSWERS)
    assert (here / "north" / "node" / "node.key").read_bytes() == key


def test_an_invitation_holds_no_key_and_no_odd_address(here):
    for wrong in ({"certificate": "-----BEGIN PRIVATE KEY-----"}, {"address": "hub:port"}, {"address": "a b:1"}):
        tree = {"federation": "lungs", "address": "hub:9443", **wrong}
        (here / "odd.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(InputError, match=next(iter(wrong))):
            _init("north", "--invitation", "odd.yaml", "--rehearsal", "study.yaml", *ANSWERS)


def _without(text, line):
    lines = text.splitlines(keepends=True)
    return "".join(lines[:line] + lines[line + 1 :])


DAMAGED = {
    "no certificate": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "no base64": "-----BEGIN CERTIFICATE-----\nno base64!\n-----END CERTIFICATE-----\n",
    "a line is missing": _without(CERTIFICATE, 3),
    "a line is another": CERTIFICATE.replace(CERTIFICATE.splitlines()[2], "A" * 64),
    "no end": CERTIFICATE[:-30],
    "cut off": CERTIFICATE[:200],
    "the last has no end": CERTIFICATE + CERTIFICATE[:-30],
    "the first has no end": CERTIFICATE[:-30] + CERTIFICATE,
    "a line of the last is missing": CERTIFICATE + _without(CERTIFICATE, 2),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_certificate_is_found_when_the_site_is_made(here, damage):
    tree = {"federation": "lungs", "address": "hub:9443", "certificate": DAMAGED[damage]}
    (here / "odd.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match="certificate: each certificate is whole"):
        _init("north", "--invitation", "odd.yaml", "--rehearsal", "study.yaml", *ANSWERS)
    assert not (here / "north").exists()


def test_several_whole_certificates_and_words_between_them_are_taken(here):
    chain = f"# the authority\n{CERTIFICATE}\n# the older one\n{new_authority('lungs').certificate.decode()}"
    tree = {"federation": "lungs", "address": "hub:9443", "certificate": chain}
    (here / "odd.yaml").write_text(yaml.safe_dump(tree))
    _init("north", "--invitation", "odd.yaml", "--rehearsal", "study.yaml", *ANSWERS)
    assert SiteFolder(here / "north").node.certificates.read_text() == chain


def test_a_policy_that_is_written_says_every_key_and_what_it_means(tmp_path):
    folder = make(tmp_path / "north", epsilon=2.5, delta=1e-6)
    text = folder.policy.read_text()
    tree = yaml.safe_load(text)
    assert (tree["epsilon"], tree["delta"], tree["review"]) == (2.5, 1e-6, False)
    assert all(f"\n{key}:" in text for key in type(load_policy(folder.policy)).model_fields)
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_group_enters_what_it_needs_alone(tmp_path):
    folder = make(tmp_path / "north", group=str(os.getgid()))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.path.rglob("*")}
    entered = {path.relative_to(folder.path).as_posix() for path, mode in modes.items() if mode & 0o070}
    assert entered == {"run", "node", "node/node.key", "node/flower", "node/north.pub", "node/node.yaml"}
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o710


def test_a_key_pair_is_one_that_flower_takes():
    private, public = new_key_pair("north")
    key = serialization.load_ssh_private_key(private, None)
    assert key.curve.name == "secp384r1"
    encoded = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert public == encoded + b" north\n"
    check_public_key(public, "It")


@pytest.mark.parametrize(
    "data", [b"", b"ssh-ed25519 AAAA", b"\xff" * 100, new_key_pair("x")[0], b"x" * 100_000], ids=range(5)
)
def test_what_is_no_such_key_is_refused(data):
    with pytest.raises(InputError, match="P-384"):
        check_public_key(data, "It")


def test_a_path_that_no_socket_can_have_is_refused(tmp_path):
    with pytest.raises(InputError, match="at most 100 bytes"):
        check_socket(tmp_path / ("x" * 100) / "agent.sock")

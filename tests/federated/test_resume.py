"""What a run rests on: it is resumed with that, or refused with a word on what it was and what it is."""

import json

import numpy as np
import pytest

from cadp_fl.data import sources
from cadp_fl.data.fingerprint import Fingerprint
from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.errors import InputError
from cadp_fl.federated import basis
from cadp_fl.site.protocol import ACTIONS
from cadp_fl.study import simulated_sites
from tests.federated.test_deployed import kill
from tests.federated.test_workflow import Killed, Run
from tests.hospitals import Hospitals

FEDAVG = "methods={fedavg: {rounds: 1}, dp-sgd: {rounds: 1}}"
IID = "sites.partition.kind=iid"


def interrupted(run_config, *overrides):
    """Run until a second method begins, and kill the server."""
    run = Run(run_config, FEDAVG, IID, *overrides)
    answer, seen = run.grid.app, []

    def killing(message, context):
        seen.append(message.metadata.message_type)
        if seen.count(ACTIONS["train_classifier"]) == 4:
            raise Killed
        return answer(message, context)

    run.grid.app = killing
    with pytest.raises(Killed):
        run.go()
    return run


def resumed(run_config, *overrides):
    simulated_sites.dealt.cache_clear()  # as in a new process
    return Run(run_config, FEDAVG, IID, *overrides)


def replace_source(monkeypatch, change):
    """Let another export of the same name and size be read from now on."""
    source = sources.read_digits(None)
    monkeypatch.setitem(sources.SOURCES, "digits", sources.Reader(lambda config: change(source)))
    simulated_sites.dealt.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_records():
    yield
    simulated_sites.dealt.cache_clear()


def swapped_labels(source):
    train = source.train
    return Source(Dataset(train.schema, train.images, (train.labels + 1) % 10))


def darker(source):
    train = source.train
    images = train.images.copy()
    images[0, 0, 0, 0] ^= 255
    return Source(Dataset(train.schema, images, train.labels))


def one_less(source):
    return Source(source.train.select(np.arange(len(source.train) - 1)))


def with_patients(source):
    train = source.train
    return Source(Dataset(train.schema, train.images, train.labels, np.arange(len(train))))


def another_class_name(source):
    train, classes = source.train, ("zero", *source.schema.classes[1:])
    return Source(Dataset(train.schema.model_copy(update={"classes": classes}), train.images, train.labels))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swapped_labels, r"training labels \(\d+ now and then, with other values\), test"),
        (darker, r"in: of '\w+' (training|test) images \(\d+ now and then, with other values\)\. Bring"),
        (one_less, r"of '\w+' (training|test) images \(\d+ now, \d+ then\)"),
        (with_patients, r"of '\w+' training patients \(\d+ now, 0 then\)"),
        (another_class_name, r"classes \(\('zero', .* now, \('0', .* then\)"),
    ],
)
def test_a_simulation_is_not_resumed_with_other_records(run_config, monkeypatch, change, said):
    run = interrupted(run_config)
    before = run.json("summary.json")
    assert list(before["methods"]) == ["fedavg"]
    replace_source(monkeypatch, change)
    with pytest.raises(InputError, match=said):
        resumed(run_config).go(resume=True)
    assert run.json("summary.json")["methods"] == before["methods"], "no method of other records stands beside it"
    if change is not swapped_labels:
        return
    monkeypatch.undo()
    again = resumed(run_config)
    assert again.go(resume=True) == "complete"
    assert list(again.json("summary.json")["methods"]) == ["fedavg", "dp-sgd"]


def test_the_fingerprint_of_records_stays_in_the_run_folder(run_config):
    run = Run(run_config, "methods={fedavg: {rounds: 1}}")
    assert run.go() == "complete"
    left = json.loads((run.folder / "checkpoint.json").read_text())["records"]
    hashes = {each[1] for site in left.values() for each in site["parts"].values()}
    assert len(left) == 3
    assert len(hashes) == 12
    for name in ("summary.json", "privacy.json", "metrics.jsonl", "report.html", "config.yaml"):
        assert not any(each in (run.folder / name).read_text() for each in hashes), name


def test_a_real_site_never_sends_a_fingerprint_of_its_records(tmp_path):
    hospitals = Hospitals(tmp_path, "methods={dp-sgd: {rounds: 1, model: linear}}")
    assert hospitals.go() == "complete"
    crossed = [
        reply.content.config_records["cadp-json"]["json"]
        for reply in hospitals.grid.replies
        if reply.metadata.message_type == ACTIONS["describe"]
    ]
    assert len(crossed) == 3
    assert not any("simulation_only" in each or "records_sha" in each for each in crossed)
    assert json.loads((hospitals.folder / "checkpoint.json").read_text())["records"] == {}


def test_fingerprints_differ_wherever_records_do():
    generator = np.random.default_rng(0)
    schema = Schema(name="x", shape=(1, 2, 2), classes=("a", "b"), attributes=("p", "q"))
    images = generator.integers(0, 256, (6, 1, 2, 2), dtype=np.uint8)
    labels, patients = np.array([0, 1, 0, 1, 0, 1]), np.arange(6)
    attributes = np.zeros((6, 2), dtype=np.uint8)
    plain = Dataset(schema, images, labels, patients, attributes)

    def of(train, test=plain):
        from cadp_fl.data.partition import SiteData

        return Fingerprint.of(SiteData(train, test))

    more = attributes.copy()
    more[3, 1] = 1
    others = {
        "images": Dataset(schema, images[::-1].copy(), labels, patients, attributes),
        "labels": Dataset(schema, images, labels[::-1].copy(), patients, attributes),
        "patients": Dataset(schema, images, labels, patients + 1, attributes),
        "attributes": Dataset(schema, images, labels, patients, more),
    }
    assert of(plain).differences(of(plain)) == []
    for part, other in others.items():
        assert of(other).differences(of(plain)) == [f"training {part} (6 now and then, with other values)"]
        assert of(plain, other).differences(of(plain)) == [f"test {part} (6 now and then, with other values)"]


@pytest.mark.parametrize(
    ("name", "now", "is_refused"),
    [
        ("torch", "1.0.0", True),
        ("numpy", "1.0.0", True),
        ("flwr", "1.0.0", True),
        ("python", "2.7.18", True),
        ("cadp-fl", "99.0.0", True),
        ("python", None, False),
        ("cadp-fl", None, False),
    ],
)
def test_a_run_is_resumed_with_the_software_that_it_began_with(run_config, monkeypatch, name, now, is_refused):
    run = interrupted(run_config)
    versions = basis.installed_versions()
    then = versions[name]
    now = now or f"{then}.patch1"
    monkeypatch.setattr(basis, "installed_versions", lambda: versions | {name: now})
    if is_refused:
        with pytest.raises(InputError, match="with the software that it began with") as refused:
            resumed(run_config).go(resume=True)
        assert f"{name} is {now} now and was {then}; install the earlier one again" in str(refused.value)
        assert (f'pip install "{name}=={then}"' in str(refused.value)) == (name != "python")
    else:
        assert resumed(run_config).go(resume=True) == "complete"
        assert run.json("summary.json")["software"][name] == f"{then}, then {now}"
        reading = run.json("privacy.json")["resumed"]["reading"]
        assert "events are the plan of the whole run" in reading
        assert "spent is what finished phases and the last attempt spent" in reading


PLUGIN = """
from cadp_fl.data.partition import PARTITIONS
PARTITIONS["plugged-{tag}"] = PARTITIONS["iid"]
"""


@pytest.mark.parametrize("kind", ["file", "module", "package"])
def test_a_run_is_not_resumed_with_a_plugin_whose_code_changed(run_config, monkeypatch, tmp_path, kind):
    from cadp_fl.study.plugins import load_plugins

    monkeypatch.syspath_prepend(tmp_path)
    name = f"plug_{kind}"
    path = tmp_path / (f"{name}/__init__.py" if kind == "package" else f"{name}.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(PLUGIN.format(tag=kind))
    changed = path.with_name("inner.py") if kind == "package" else path
    plugin = str(path) if kind == "file" else name
    load_plugins([plugin])
    overrides = f"plugins=[{plugin}]", f"sites.partition.kind=plugged-{kind}"
    interrupted(run_config, *overrides)
    before = changed.read_text() if changed.exists() else None
    changed.write_text("# another rule\n")
    with pytest.raises(InputError, match=rf"The code of '.*{name}.*' is another one now \(SHA-256 \w+, and was \w+\)"):
        resumed(run_config, *overrides).go(resume=True)
    changed.write_text(before) if before is not None else changed.unlink()
    assert resumed(run_config, *overrides).go(resume=True) == "complete"


def test_a_server_app_does_not_resume_another_study(run_config):
    """The command checks it too; a server app that is started by hand has no command before it."""
    interrupted(run_config)
    with pytest.raises(InputError, match=r"'budget\.epsilon' is .* now and was"):
        resumed(run_config, "budget.epsilon=2.5").go(resume=True)


def test_a_run_of_real_sites_names_each_fact_of_a_site_that_changed(tmp_path):
    hospitals = Hospitals(tmp_path, FEDAVG)
    kill(hospitals, ACTIONS["train_classifier"], 1)
    train = hospitals.dealt[1].train
    hospitals.dealt[1] = type(hospitals.dealt[1])(
        train.select(np.arange(len(train) - 1)), hospitals.dealt[1].test.select(np.arange(5))
    )
    hospitals.start()
    assert hospitals.go(resume=True) == "incomplete"
    (gap,) = json.loads((hospitals.folder / "summary.json").read_text())["missing"]
    assert f"train is {len(train) - 1} now and was {len(train)}" in gap["reason"]
    assert "test is 5 now and was" in gap["reason"]

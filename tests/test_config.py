from pathlib import Path

import pytest
import yaml

from cadp_fl.config import dump_study, load_study
from cadp_fl.errors import ConfigError


def test_a_dumped_study_loads_back_equal(tiny, tmp_path):
    (tmp_path / "copy.yaml").write_text(dump_study(tiny))
    assert load_study(tmp_path / "copy.yaml") == tiny


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("flow.training.ronds=3", "Unknown key 'flow.training.ronds'. Did you mean 'rounds'?"),
        ("sedd=3", "Unknown key 'sedd'. Did you mean 'seed'?"),
        ("zzz=3", "Unknown key 'zzz'. Known here: name, seed, noise"),
        ("flow.scales.0.chanels=3", "Unknown key 'flow.scales.0.chanels'. Did you mean 'channels'?"),
        (
            "flow={training: {rounds: 0}}",
            "flow: a flow is trained or pretrained. Found training.rounds 0 and no flow.pretrained",
        ),
        ("budget.epsilon=-1", "'budget.epsilon' is at least 0.001. Found -1. See --set budget.epsilon=-1"),
        ("budget.epsilon=.inf", "'budget.epsilon' is a finite number. Found .inf."),
        ("budget.delta=2", "'budget.delta' is below 1. Found 2."),
        (
            "budget.epsilon=null",
            "'budget.epsilon' is a number. Found null; write it in digits, as 0.5 or 1e-5, without quotes.",
        ),
        ("sites.count=1", "'sites.count' is at least 2. Found 1."),
        ("sites.count=4", "sites: names must be 4 different names."),
        ("sites.names=[a, b, ../c]", "Found '../c'"),
        ("sites.quorum=4", "sites: quorum must be at most the number of sites, 3. Found 4."),
        ("noise=none", "'noise' is 'entropy' or 'seeded'. Found 'none'."),
        ("methods=[]", "'methods' holds at least 1. Found 0."),
        ("methods=[fedavg, fedavg]", "methods: a method is listed once. Found 'fedavg' again; take it out."),
        ("methods={fedavg: 3}", "a method's settings are a mapping. Found 3; write it as {key: value}."),
        ("methods={fedavg: false}", "a method's settings are a mapping. Found False"),
        ("data.classes=[a, b, a]", "data.classes: every class has a name of its own. Found ['a', 'b', 'a']."),
        ("data.attributes=[a, b, a]", "data.attributes: every attribute has a name of its own. Found ['a', 'b', 'a']."),
        (
            "data.attributes=[a, b]",
            "data: one attribute is the class to be learned. Found attributes and no label; give",
        ),
        ("data.classes=[a]", "'data.classes' holds at least 2. Found 1."),
        ("data.classes=no", "'data.classes' is a list. Found 'no'; write it as [a, b]."),
        ("data.download=maybe", "'data.download' is true or false. Found 'maybe'; write one of the two."),
        ("data.path=~nobody-of-this-name/x.npz", "data.path is a path of this machine. Found '~nobody-of-this-name/x"),
        ("sites.partition.classes_per_site=0", "'sites.partition.classes_per_site' is at least 1. Found 0."),
        ("nokey", "An override is 'dotted.key=value'. Found 'nokey'."),
        ("name.first=3", "'name.first' cannot be set: 'first' is not below a mapping."),
    ],
)
def test_a_wrong_value_is_one_sentence_with_its_key(quickstart, override, sentence):
    with pytest.raises(ConfigError) as caught:
        load_study(quickstart, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["epsilon", "delta"])
def test_a_budget_has_no_default(quickstart, tmp_path, key):
    tree = yaml.safe_load(quickstart.read_text())
    del tree["budget"][key]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=f"'budget.{key}' is required and has no default"):
        load_study(tmp_path / "study.yaml")


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match="Found none at"):
        load_study(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "a: !!python/object:os.system {}"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match="A study config is"):
        load_study(tmp_path / "study.yaml")


def test_variables_expand_and_relative_paths_start_at_the_config(quickstart, tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(quickstart.read_text())
    monkeypatch.setenv("FOLDER", "images")
    overrides = ["data.path=${FOLDER}/${FILE:-x.npz}"]
    assert load_study(tmp_path / "study.yaml", overrides).data.path == tmp_path / "images" / "x.npz"
    monkeypatch.delenv("FOLDER")
    with pytest.raises(ConfigError, match="FOLDER"):
        load_study(tmp_path / "study.yaml", overrides)


def test_a_list_of_methods_takes_every_default(quickstart):
    study = load_study(quickstart, ["methods=[fedavg, dp-sgd]"])
    assert study.methods == {"fedavg": {}, "dp-sgd": {}}


def test_an_absolute_path_stays(quickstart, tmp_path):
    assert load_study(quickstart, [f"data.path={tmp_path / 'x.npz'}"]).data.path == Path(tmp_path / "x.npz")


def test_a_variable_that_is_not_set_is_named_with_its_key_and_the_way_out(quickstart, monkeypatch):
    monkeypatch.delenv("CADP_FL_DATA")
    with pytest.raises(ConfigError) as caught:
        load_study(quickstart, ["data.path=${CADP_FL_DATA}/x.npz"])
    assert "'data.path' reads ${CADP_FL_DATA}, and CADP_FL_DATA is not set" in str(caught.value)
    assert "run export CADP_FL_DATA=..., or pass --set data.path=..." in str(caught.value)


def test_an_override_needs_no_variable_of_the_value_that_it_replaces(quickstart, tmp_path, monkeypatch):
    monkeypatch.delenv("CADP_FL_DATA")
    tree = yaml.safe_load(quickstart.read_text())
    tree["data"]["path"] = "${CADP_FL_DATA}/x.npz"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree))
    assert load_study(tmp_path / "study.yaml", ["data.path=y.npz"]).data.path == tmp_path / "y.npz"


def test_a_path_may_start_at_home(quickstart, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_study(quickstart, ["data.path=~/x.npz"]).data.path == tmp_path / "x.npz"


def test_an_earlier_word_is_read_with_a_note_that_says_the_new_one(quickstart, caplog):
    from cadp_fl.config import renamed

    renamed.note_once.cache_clear()
    study = load_study(quickstart, ["release.labels=randomized"])
    assert (study.release.labels, study.labels) == ("covered", "covered")
    assert "release.labels: randomized is called covered now" in caplog.text
    caplog.clear()
    assert load_study(quickstart, ["release.labels=covered"]) == study
    assert not caplog.text

"""Plugins: what a study names is imported, and what breaks a rule leaves nothing behind."""

import sys

import pytest

from cadp_fl.classifier.models import CLASSIFIERS
from cadp_fl.config import dump_study, load_study
from cadp_fl.errors import ConfigError
from cadp_fl.study.plugins import REGISTRIES, load_plugins
from cadp_fl.study.simulated_sites import study_from_run_config
from clients.client_app import site_for

pytestmark = pytest.mark.usefixtures("own_registries")

ADDS = (
    "from cadp_fl.classifier.models import CLASSIFIERS\nCLASSIFIERS['plugged'] = lambda shape, classes, width: None\n"
)


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "my_plugin.py").write_text(ADDS)
    return tmp_path / "my_plugin.py"


def test_a_path_is_relative_to_the_config_and_a_module_is_not(quickstart, plugin, tmp_path):
    (tmp_path / "study.yaml").write_text(quickstart.read_text())
    study = load_study(tmp_path / "study.yaml", ["plugins=[./my_plugin.py, some.module]"])
    assert study.plugins == (str(plugin), "some.module")
    (tmp_path / "copy.yaml").write_text(dump_study(study))
    assert load_study(tmp_path / "copy.yaml") == study
    assert load_study(quickstart).plugins == ()


@pytest.mark.parametrize("name", ["my plugin", "a..b", "../x", "x.py.", ""])
def test_a_plugin_is_a_module_or_a_file(quickstart, name):
    with pytest.raises(ConfigError, match=r"plugins: a plugin is a module's dotted name, or a path that ends in \.py"):
        load_study(quickstart, [f"plugins=['{name}']"])


def test_reading_a_study_runs_no_plugin(quickstart, plugin):
    plugin.write_text("raise SystemExit('ran')")
    load_study(quickstart, [f"plugins=[{plugin}]"])


def test_a_plugin_is_imported_once(plugin):
    plugin.write_text(ADDS)
    load_plugins([str(plugin)])
    first = CLASSIFIERS["plugged"]
    load_plugins([str(plugin)])
    assert CLASSIFIERS["plugged"] is first


def test_a_module_that_is_installed_is_a_plugin(plugin, monkeypatch):
    monkeypatch.syspath_prepend(plugin.parent)
    load_plugins(["my_plugin"])
    assert "plugged" in CLASSIFIERS


def test_every_side_of_a_simulation_imports_the_studys_plugins(run_config, plugin, tmp_path):
    study_from_run_config(run_config | {"set": f"{run_config['set']}; plugins=[{plugin}]"}, tmp_path)
    assert "plugged" in CLASSIFIERS


def test_a_node_that_is_not_simulated_imports_no_plugin(run_config, plugin):
    from flwr.app import Context, RecordDict

    run_config = run_config | {"set": f"{run_config['set']}; plugins=[{plugin}]"}
    with pytest.raises(ConfigError, match="names the socket of the site's agent"):
        site_for(Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config))
    assert "plugged" not in CLASSIFIERS


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("raise ValueError('odd\\nvalue.')", "raised ValueError: odd value; fix it"),
        ("import nothing_of_this_name", "raised ModuleNotFoundError: No module named 'nothing_of_this_name'; fix it"),
        ("raise SystemExit(3)", "raised SystemExit: 3; fix it"),
        ("x = (", "raised SyntaxError: "),
        ("CLASSIFIERS['cnn'] = CLASSIFIERS['linear']", "changed 'cnn' of CLASSIFIERS; give its own another name"),
        ("del CLASSIFIERS['cnn']", "changed 'cnn' of CLASSIFIERS"),
        ("CLASSIFIERS['My CNN'] = CLASSIFIERS['cnn']", "adds 'My CNN'; rename it"),
        (
            "from cadp_fl.federated.methods import METHODS; METHODS['new'] = METHODS['fedavg']",
            "puts one below 'new' whose name is another",
        ),
    ],
)
def test_a_plugin_that_breaks_a_rule_leaves_nothing_behind(plugin, code, sentence):
    before = {name: dict(entries) for name, entries in REGISTRIES.items()}
    plugin.write_text(ADDS + code)
    for _ in range(2):  # it is not taken for imported after it failed
        with pytest.raises(ConfigError, match=sentence) as caught:
            load_plugins([str(plugin)])
        assert "\n" not in str(caught.value)
        assert str(plugin) in str(caught.value)
        assert before == REGISTRIES


def test_a_plugin_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"There is no file '{tmp_path / 'no.py'}'; check it"):
        load_plugins([str(tmp_path / "no.py")])
    for name in ("no_such_package", "no_such_package.sub", "cadp_fl.no_such_module"):
        with pytest.raises(ConfigError, match=f"No module '{name}' is found; install it"):
            load_plugins([name])
        assert name not in sys.modules

"""What plugins and other apps may rely on: the names, where they are imported from, and how they are called."""

import ast
import importlib
import inspect
import re

import pytest

from tests.conftest import ROOT

PUBLIC = {
    "cadp_fl.classifier.models": ["CLASSIFIERS", "build_classifier"],
    "cadp_fl.config": ["DataConfig", "PartitionConfig", "Settings", "StudyConfig", "load_study", "parse"],
    "cadp_fl.data.arrays": ["dataset_of"],
    "cadp_fl.data.partition": ["PARTITIONS", "Patients", "SiteData"],
    "cadp_fl.data.schema": ["Dataset", "Schema", "Source"],
    "cadp_fl.data.sources": ["SOURCES", "Reader"],
    "cadp_fl.errors": ["CadpError", "ConfigError", "DataError", "ExchangeError", "FederationError", "PrivacyError"],
    "cadp_fl.federated.flower_client": ["agent_site", "register"],
    "cadp_fl.federated.flower_server": ["Workflow"],
    "cadp_fl.federated.flower_site": ["simulation_site"],
    "cadp_fl.federated.methods": ["METHODS"],
    "cadp_fl.federated.methods.base": [
        "Method",
        "PhaseCost",
        "StudyRun",
        "Trained",
        "bytes_of",
        "evaluate_at_sites",
        "fits_module",
        "mean_figure",
    ],
    "cadp_fl.privacy.accounting": [
        "DeclaredPublic",
        "Event",
        "LatentGaussian",
        "LatentGaussianGrid",
        "LatentLaplace",
        "PoissonGaussian",
        "ProtectedEvent",
        "Relation",
        "ReleaseEvent",
        "Unprotected",
        "calibrate_noise",
        "epsilon_of",
    ],
    "cadp_fl.privacy.claims": ["CLASSIFIER_WEIGHTS", "FLOW_WEIGHTS"],
    "cadp_fl.privacy.clipped_normal": ["ClippedNormal"],
    "cadp_fl.privacy.clipping": ["CLIP_MARGIN", "clip_l1", "clip_l2"],
    "cadp_fl.privacy.dpsgd": ["COVERED_LAYERS"],
    "cadp_fl.privacy.ledger": ["Ledger", "MemoryLedger", "Plan"],
    "cadp_fl.privacy.mechanisms": ["MECHANISMS", "Mechanism"],
    "cadp_fl.privacy.noise": ["NoiseSource"],
    "cadp_fl.release.dataset": ["ReleasedRecords", "load_release"],
    "cadp_fl.site.protocol": ["ACTIONS", "Reply", "Request", "SitePort"],
    "cadp_fl.site.requests": ["ClassifierRequest", "DpSgdTraining", "EpochTraining", "EvaluateRequest"],
    "cadp_fl.site.site": ["Site"],
    "cadp_fl.study.plugins": ["load_plugins"],
    "cadp_fl.weights": ["average", "get_weights", "set_weights"],
}

CALLS = {
    "cadp_fl.data.arrays.dataset_of": "images, labels, patients, *, classes, name, levels, attributes",
    "cadp_fl.data.schema.Dataset": "schema, records, labels, patients, attributes, ids, sites",
    "cadp_fl.data.schema.Source": "train, test, site_names, notes",
    "cadp_fl.data.sources.Reader": "read, path, takes_classes, takes_label, takes",
    "cadp_fl.federated.flower_client.agent_site": "context",
    "cadp_fl.federated.flower_client.register": "app, site_for, *, explain",
    "cadp_fl.federated.flower_server.Workflow": "study, folder, *, watch, resume, federation",
    "cadp_fl.federated.flower_server.Workflow.run": "self, grid, context",
    "cadp_fl.federated.flower_site.simulation_site": (
        "context, train, test, *, classes, levels, name, noise_seed, device, outbox"
    ),
    "cadp_fl.federated.methods.base.evaluate_at_sites": "run, model, architecture, *, phase, round, of, seed, ridge",
    "cadp_fl.privacy.ledger.MemoryLedger": "store",
    "cadp_fl.privacy.noise.NoiseSource.normal": "self, shape, std, like",
    "cadp_fl.privacy.noise.NoiseSource.laplace": "self, shape, scale, like",
    "cadp_fl.privacy.noise.NoiseSource.rounded_normal": "self, shape, std, like",
    "cadp_fl.site.site.Site": (
        "name, data, *, ledger, noise, device, outbox, simulation, policy, answers, orders, measures"
    ),
    "cadp_fl.site.site.Site.call": "self, request",
    "cadp_fl.study.plugins.load_plugins": "plugins",
}

PAGE = ROOT / "docs" / "plugin.md"


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_where_it_is_said_to_be(module):
    offered = importlib.import_module(module)
    for name in PUBLIC[module]:
        assert name in offered.__all__, f"{module}.{name}"
        assert hasattr(offered, name)


@pytest.mark.parametrize("call", CALLS)
def test_a_public_call_takes_what_it_took(call):
    module = next(name for name in PUBLIC if call.startswith(f"{name}."))
    found = importlib.import_module(module)
    for part in call.removeprefix(f"{module}.").split("."):
        found = getattr(found, part)
    parameters, starred, names = inspect.signature(found).parameters.values(), False, []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            names, starred = [*names, "*"], True
        names.append(parameter.name)
    assert ", ".join(names) == CALLS[call]


def test_the_page_lists_the_public_names():
    table = PAGE.read_text().split("<!-- names -->")[1]
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*) \|$", table, re.MULTILINE)
    assert {module: re.findall(r"`(\w+)`", names) for module, names in rows} == PUBLIC


def imports(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "cadp_fl":
            yield from ((node.module, alias.name) for alias in node.names)


def test_the_page_and_the_examples_use_public_names_alone():
    codes = [path.read_text() for path in (ROOT / "examples").rglob("*.py")]
    codes += re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    used = [each for code in codes for each in imports(code)]
    assert len(used) > 30
    assert [f"{module}.{name}" for module, name in used if name not in PUBLIC.get(module, [])] == []

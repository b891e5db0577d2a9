"""A site over a host app's arrays, whose ledger lives in the node's state."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from cadp_fl.errors import BudgetError, ConfigError
from cadp_fl.federated.flower_site import simulation_site
from cadp_fl.privacy.mechanisms import RELEASED_RECORDS
from cadp_fl.privacy.plan import Plan
from cadp_fl.site.protocol import Request

IMAGES = np.linspace(0, 1, 20 * 64).reshape(20, 8, 8)
LABELS = np.arange(20) % 2


def context(**node_config):
    return Context(run_id=1, node_id=10, node_config=node_config, state=RecordDict(), run_config={})


def site_of(node, **settings):
    return simulation_site(node, (IMAGES, LABELS), (IMAGES[:4], LABELS[:4]), classes=("no", "yes"), **settings)


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_ledger_outlives_the_site_object_of_a_message():
    node = context(**{"partition-id": 1})
    plan = Plan("fedavg", (RELEASED_RECORDS,), 1e-5)
    site_of(node).call(Request("reserve", {"plans": [plan.to_json()]}))
    accounts = site_of(node).call(Request("account")).content["accounts"]
    (kept,) = [Plan.from_json(account["plan"]) for account in accounts]
    assert kept == replace(plan, conditions=kept.conditions)
    with pytest.raises(BudgetError, match="reserves one plan"):
        site_of(node).call(Request("reserve", {"plans": [plan.to_json() | {"delta": 1e-6}]}))
    assert site_of(context(**{"partition-id": 1})).call(Request("account")).content["accounts"] == []


def test_a_site_is_named_and_draws_its_noise_as_a_study_expects_by_default():
    description = site_of(context(**{"partition-id": 1})).call(Request("describe")).content
    assert (description["site"], description["noise"], description["train"], description["test"]) == (
        "site-2",
        "entropy",
        20,
        4,
    )
    description = site_of(context(**{"partition-id": 1}), name="north", noise_seed=3).call(Request("describe")).content
    assert (description["site"], description["noise"]) == ("north", "seeded")


def test_the_outbox_is_private_and_found_again_by_the_next_message(tmp_path):
    node = context(**{"partition-id": 0})
    site_of(node)
    folders = list(tmp_path.iterdir())
    assert len(folders) == 1
    assert folders[0].stat().st_mode & 0o077 == 0
    site_of(node)
    assert list(tmp_path.iterdir()) == folders
    assert Path(node.state.config_records["cadp-site"]["outbox"]) == folders[0]
    site_of(context(**{"partition-id": 0}), outbox=tmp_path / "mine")
    assert list(tmp_path.iterdir()) == folders


@pytest.mark.parametrize(
    "node_config",
    [{"site": "hospital-a"}, {"agent": "/srv/agent.sock"}, {"partition-id": 0, "agent": "/srv/agent.sock"}],
    ids=["of nobody", "of an agent", "of an agent, with a number"],
)
def test_a_node_that_is_not_simulated_gets_no_such_site(node_config):
    with pytest.raises(ConfigError, match="is for simulations, whose nodes have a partition-id and name no agent"):
        site_of(context(**node_config))

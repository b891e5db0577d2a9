"""The Flower `ClientApp` of a simulation: each node is one simulated site."""

from pathlib import Path

from flwr.app import ConfigRecord, Context
from flwr.clientapp import ClientApp

from cadp_fl.federated.flower_client import register
from cadp_fl.site.protocol import SitePort

APP_FOLDER = Path(__file__).resolve().parents[1]


def site_for(context: Context) -> SitePort:
    """Return the site of the node that got a message. Its ledger lives in the node's state."""
    from cadp_fl.study.simulation import simulated_site, study_from_run_config

    partition = int(context.node_config["partition-id"])  # first: only a simulated node reads the study and its plugins
    study, output = study_from_run_config(context.run_config, APP_FOLDER)
    ledger = context.state.config_records.setdefault("cadp-ledger", ConfigRecord())
    return simulated_site(study, partition, output, ledger)


app = ClientApp()
register(app, site_for, explain=True)

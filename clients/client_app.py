"""The Flower `ClientApp`: each node of a simulation is one simulated site, and each real one asks its site's agent.

At a hospital this file arrives from the server, so it holds no power over records: it passes a request on to the socket
of the agent, and the answer back. It imports neither torch nor data code there.
"""

from pathlib import Path

from flwr.app import ConfigRecord, Context
from flwr.clientapp import ClientApp

from cadp_fl.federated.flower_client import agent_site, is_simulated, register
from cadp_fl.site.protocol import SitePort

APP_FOLDER = Path(__file__).resolve().parents[1]


def site_for(context: Context) -> SitePort:
    """Return the site of the node that got a message."""
    return _simulated(context) if is_simulated(context) else agent_site(context)


def _simulated(context: Context) -> SitePort:
    """Return the site of a simulated node. Its ledger lives in the node's state."""
    from cadp_fl.study.simulated_sites import simulated_site, study_from_run_config

    partition = int(context.node_config["partition-id"])  # first: only a simulated node reads the study and its plugins
    study, output = study_from_run_config(context.run_config, APP_FOLDER)
    ledger = context.state.config_records.setdefault("cadp-ledger", ConfigRecord())
    return simulated_site(study, partition, output, ledger)


app = ClientApp()
register(app, site_for, explain=True)

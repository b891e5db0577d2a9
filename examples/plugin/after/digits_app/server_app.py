"""A Flower ServerApp with federated averaging of its own."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from cadp_fl.config import load_study
from cadp_fl.federated.flower_server import Workflow
from digits_app.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average for some rounds, and keep the network."""
    folder, rounds = Path(context.run_config["output-dir"]), int(context.run_config["num-server-rounds"])
    folder.mkdir(parents=True, exist_ok=True)
    result = FedAvg().start(grid=grid, initial_arrays=ArrayRecord(Net().state_dict()), num_rounds=rounds)
    torch.save(result.arrays.to_torch_state_dict(), folder / "net.pt")
    Workflow(load_study(Path(__file__).with_name("study.yaml")), folder / "cadp").run(grid, context)

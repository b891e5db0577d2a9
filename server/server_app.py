"""The Flower `ServerApp`: one study, driven over the Grid that Flower gives."""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cadp_fl.federated.flower_server import Workflow, describe_all
from cadp_fl.federated.recorder import PROGRESS_VARIABLE, lines_to
from cadp_fl.study.simulation import study_from_run_config

APP_FOLDER = Path(__file__).resolve().parents[1]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of the run config into its output folder; or only ask every node what its site is."""
    if context.run_config.get("only-describe"):
        describe_all(grid, Path(str(context.run_config["output-dir"])))
        return
    study, output = study_from_run_config(context.run_config, APP_FOLDER)
    progress = os.environ.get(PROGRESS_VARIABLE)
    watch = lines_to(Path(progress)) if progress else None
    Workflow(study, output, watch=watch, resume=bool(context.run_config.get("resume"))).run(grid, context)

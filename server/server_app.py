"""The Flower `ServerApp`: one study, driven over the Grid that Flower gives."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cadp_fl.federated.flower_server import Workflow, describe_all
from cadp_fl.federated.recorder import lines_to
from cadp_fl.study.simulated_sites import study_from_run_config

APP_FOLDER = Path(__file__).resolve().parents[1]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study of the run config into its output folder; or only ask every node what its site is."""
    settings = context.run_config
    if settings.get("only-describe"):
        describe_all(grid, Path(str(settings["output-dir"])))
        return
    study, output = study_from_run_config(settings, APP_FOLDER)
    progress, federation = str(settings.get("progress", "")), str(settings.get("federation", ""))
    watch = lines_to(Path(progress)) if progress else None
    resume = bool(settings.get("resume"))
    Workflow(study, output, watch=watch, resume=resume, federation=federation).run(grid, context)

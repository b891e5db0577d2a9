"""The commands that look at records, or at what is known of them, before anything is run."""

import typer

from cadp_fl.cli.data_files import check, clear_cache, import_
from cadp_fl.cli.data_schema import schema

__all__ = ["data_app"]

data_app = typer.Typer(
    name="data", help="Records, and what is public of them, before anything is run.", no_args_is_help=True
)
data_app.command(epilog="Example: cadp-fl data schema public-sample.csv --label outcome --output columns.yaml")(schema)
data_app.command(epilog="Example: cadp-fl data check configs/heart-disease.yaml")(check)
data_app.command("import", epilog="Example: cadp-fl data import scans/ --output scans.npz --set size=64")(import_)
data_app.command("clear-cache", epilog="Example: cadp-fl data clear-cache north/site.yaml")(clear_cache)

"""The commands that look at records, or at what is known of them, before anything is run."""

import typer

from cadp_fl.cli.data_schema import schema

__all__ = ["data_app"]

data_app = typer.Typer(
    name="data", help="Records, and what is public of them, before anything is run.", no_args_is_help=True
)
data_app.command(epilog="Example: cadp-fl data schema public-sample.csv --label outcome --output columns.yaml")(schema)

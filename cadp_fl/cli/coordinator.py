"""The commands of a coordinator."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cadp_fl.cli.console import teller
from cadp_fl.cli.options import AsJson, Silent
from cadp_fl.errors import InputError

__all__ = ["admit", "coordinator_app", "init", "purge", "remove", "serve", "sites"]

coordinator_app = typer.Typer(
    name="coordinator",
    help="Run a federation's server: the SuperLink, the door that sites come through, and who may.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.", metavar="FOLDER")]


@coordinator_app.command(
    epilog="Example: cadp-fl coordinator init /srv/cadp-fl --federation chest --host coordinator.example.org"
)
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="FOLDER")],
    federation: Annotated[str, typer.Option(help="The federation's name: lower-case letters, digits, hyphens.")],
    host: Annotated[str, typer.Option(help="Name or address under which sites reach this machine.")],
    port: Annotated[int, typer.Option(help="That sites reach.")] = 8443,
    superlink_port: Annotated[
        int | None, typer.Option(help="Of the SuperLink, on this machine alone; 8000 by default.", show_default=False)
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="A certificate of your own for HOST (PEM, its chain after it).")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key (PEM, without a password).")] = None,
    ca: Annotated[
        Path | None, typer.Option(help="The authorities that sign it (PEM), where sites' systems do not know them.")
    ] = None,
    no_proxy: Annotated[
        bool, typer.Option("--no-proxy", help="No nginx: for a federation on this machine alone.")
    ] = False,
    quiet: Silent = False,
) -> None:
    """Make the folder of a federation: certificates, settings, and the invitation for its sites.

    Without --certificate, an authority of the federation's own signs the
    coordinator's certificate; the invitation brings it to the sites.
    """
    from cadp_fl.config import CoordinatorConfig, parse
    from cadp_fl.deployment.coordinator import CoordinatorFolder, ServerFiles

    if (certificate is None) != (key is None) or (ca is not None and certificate is None):
        raise InputError(
            "A certificate of your own comes with its key, and --ca with both. Found a part; give --certificate and "
            "--key, or neither."
        )
    if no_proxy and superlink_port not in (None, port):
        raise InputError("Without a proxy the SuperLink has the one port. Found two; leave --superlink-port out.")
    tree = {
        "federation": federation,
        "host": host,
        "port": port,
        "proxy": "none" if no_proxy else "nginx",
        "superlink_port": superlink_port or (port if no_proxy else 8000),
    }
    made = CoordinatorFolder.create(
        folder,
        parse(CoordinatorConfig, tree),
        server=None if certificate is None or key is None else ServerFiles(certificate, key, ca),
    )
    if not quiet:
        typer.echo(f"Made {made.path}. Send each site the invitation: {made.invitation_file}")
        typer.echo(f"Its fingerprint, to compare by telephone: {made.invitation().fingerprint}")


@coordinator_app.command(epilog="Example: cadp-fl coordinator serve /srv/cadp-fl")
def serve(
    folder: Folder,
    print_: Annotated[
        bool, typer.Option("--print", help="Print the environment and commands, for units of your own; start nothing.")
    ] = False,
    quiet: Silent = False,
) -> None:
    """Serve a federation until this command is ended (Ctrl-C, or SIGTERM).

    Every user of this machine reaches the SuperLink, and can submit code to
    the sites: give it a machine of its own. With units of your own, cadp-fl
    coordinator admit FOLDER registers the admitted keys once the SuperLink
    runs.
    """
    from cadp_fl.deployment import superlink
    from cadp_fl.deployment.coordinator import CoordinatorFolder

    found = CoordinatorFolder.at(folder)
    if print_:
        typer.echo(superlink.print_programs(found))
        return
    superlink.serve(found, announce=teller(silent=quiet))


@coordinator_app.command(epilog="Example: cadp-fl coordinator admit /srv/cadp-fl north.pub east.pub")
def admit(
    folder: Folder,
    keys: Annotated[
        list[Path] | None, typer.Argument(help="Public keys that sites sent; a site is named by its file.")
    ] = None,
    quiet: Silent = False,
) -> None:
    """Let sites connect, by their public keys. Compare each fingerprint with its site's by telephone.

    Without keys, those that are admitted already are registered, if they are
    not.
    """
    from cadp_fl.deployment import registration
    from cadp_fl.deployment.coordinator import CoordinatorFolder

    fresh, registered = registration.admit(CoordinatorFolder.at(folder), keys or [])
    if quiet:
        return
    for name, fingerprint in fresh.items():
        typer.echo(f"{name}: {fingerprint}")
    if registered is None:
        typer.echo("The SuperLink does not run; it registers them at its start.")
    else:
        typer.echo(f"Registered: {', '.join(registered) or 'nothing new'}.")


@coordinator_app.command(epilog="Example: cadp-fl coordinator remove /srv/cadp-fl north")
def remove(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The site's name.", metavar="NAME")],
    quiet: Silent = False,
) -> None:
    """Let a site connect no longer. What it sent stays.

    To be let in again it needs a new key.
    """
    from cadp_fl.deployment.coordinator import CoordinatorFolder
    from cadp_fl.deployment.registration import is_up, synchronise

    found = CoordinatorFolder.at(folder)
    found.expel(name)
    up = is_up(found)
    if up:
        synchronise(found)
    if not quiet:
        later = "" if up else " The SuperLink does not run, and will know at its start."
        typer.echo(f"Removed {name}.{later}")


@coordinator_app.command(epilog="Example: cadp-fl coordinator sites /srv/cadp-fl")
def sites(folder: Folder, as_json: AsJson = False) -> None:
    """List the admitted sites, and which are connected."""
    from cadp_fl.deployment.coordinator import CoordinatorFolder
    from cadp_fl.deployment.registration import is_up, node_states

    found = CoordinatorFolder.at(folder)
    is_served = is_up(found)
    states, otherwise = (node_states(found), "not registered") if is_served else ({}, "unknown")
    tree = {
        name: {"key": fingerprint, "state": states.get(name, otherwise)}
        for name, fingerprint in found.fingerprints().items()
    }
    if as_json:
        typer.echo(json.dumps(tree, indent=2))
        return
    for name, site in tree.items():
        typer.echo(f"{name}: {site['state']}, {site['key']}")
    if not tree:
        typer.echo("No site is admitted.")
    elif not is_served:
        typer.echo(f"The SuperLink knows which are connected, and does not run: cadp-fl coordinator serve {folder}")


@coordinator_app.command(epilog="Example: cadp-fl coordinator purge /srv/cadp-fl --yes")
def purge(
    folder: Folder,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    quiet: Silent = False,
) -> None:
    """Delete the SuperLink's database, which holds what sites released. The SuperLink must be stopped.

    Admitted keys stay, and are registered afresh at the next start.
    """
    from cadp_fl.deployment import superlink
    from cadp_fl.deployment.coordinator import CoordinatorFolder

    found = CoordinatorFolder.at(folder)
    if not yes and not typer.confirm(f"Delete the database in {found.state} with all runs and releases in it?"):
        raise InputError("Nothing is deleted without a yes. Found none; give --yes, or answer y.")
    superlink.purge(found)
    if not quiet:
        typer.echo(f"Deleted what was in {found.state}.")

"""The steward's commands on the releases of a real site."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cadp_fl.cli.options import AsJson, Silent
from cadp_fl.privacy.claims import format_against, format_epsilon

if TYPE_CHECKING:
    from cadp_fl.release.manifest import Manifest
    from cadp_fl.site.review import Staged

__all__ = ["approve", "deny", "look", "review_app", "waiting"]

review_app = typer.Typer(
    name="review",
    help="Releases that wait for the steward: no record leaves before one is approved.",
    no_args_is_help=True,
)

Outbox = Annotated[
    Path, typer.Argument(help="The site's folder, or the folder of its releases alone.", metavar="SITE|OUTBOX")
]
Event = Annotated[str, typer.Argument(help="The release's event id.", metavar="EVENT")]


@review_app.command("list", epilog="Example: cadp-fl site review list north")
def waiting(outbox: Outbox, as_json: AsJson = False) -> None:
    """List the releases that were made, what each claims, and what was decided.

    Of those that wait it says in short what they keep of their records;
    cadp-fl site review show says more, and why that is for the steward alone.
    """
    from cadp_fl.site.kept import Kept
    from cadp_fl.site.review import Review

    folder = _outbox_at(outbox)[0]
    staged = Review(folder).staged()
    if as_json:
        typer.echo(json.dumps([_tree(each) for each in staged], indent=2))
        return
    for each in staged:
        typer.echo(f"{each.manifest.event_id}: {_state(each)}. {_claim_in_words(each.manifest)}")
        if each.decision is None and not each.left:
            typer.echo(f"  For you alone: {Kept.of(folder, each.manifest).in_short()}")
    if not staged:
        typer.echo("No release was made.")


@review_app.command("show", epilog="Example: cadp-fl site review show north cadp-release-7")
def look(outbox: Outbox, event: Event, as_json: AsJson = False) -> None:
    """Show a release: its claim, its records by class, and what it keeps of its originals.

    The last was measured by the site when it made the release, where its policy
    asks for review. It never leaves the site, and no epsilon covers it: it is
    for the steward alone.
    """
    from cadp_fl.site.kept import FOR_THE_STEWARD, Kept
    from cadp_fl.site.review import Review

    folder = _outbox_at(outbox)[0]
    staged = Review(folder).one(event)
    manifest, kept = staged.manifest, Kept.of(folder, staged.manifest)
    if as_json:
        tree = _tree(staged) | {"kept": kept.model_dump(mode="json"), "note": FOR_THE_STEWARD}
        typer.echo(json.dumps(tree, indent=2))
        return
    typer.echo(f"{manifest.event_id}: {_state(staged)}. {_claim_in_words(manifest)}")
    drawn = "" if manifest.parameters.label_epsilon is None else ", by labels that were drawn at random"
    counts = ", ".join(f"{name} {count}" for name, count in manifest.released_labels.items())
    typer.echo(f"Records by class{drawn}: {counts}.")
    typer.echo("What it keeps of its records:")
    for sentence in kept.sentences(manifest):
        typer.echo(f"  {sentence}")
    typer.echo(FOR_THE_STEWARD)


def _tree(staged: "Staged") -> dict[str, Any]:
    return {"decision": staged.decision, "left": staged.left, "manifest": staged.manifest.model_dump(mode="json")}


def _state(staged: "Staged") -> str:
    return staged.decision or ("left, without a review" if staged.left else "waits")


def _claim_in_words(manifest: "Manifest") -> str:
    """Return what a release is and claims, with the epsilon of one message by itself where there is one."""
    claim, parameters = manifest.claim, manifest.parameters
    epsilon = claim.epsilon_if_flow_were_fixed if claim.guarantee == "given-flow" else claim.epsilon
    by_itself = ""
    if parameters.local_epsilon is not None:
        n, local = parameters.shuffled_units, format_epsilon(parameters.local_epsilon)
        rests = f"the claim counts on a shuffle of at least {n} units" if n else "the claim rests on no shuffle"
        by_itself = f" What one unit sends has epsilon {local} by itself; {rests}."
    return (
        f"{manifest.records} records by the {manifest.mechanism} mechanism; guarantee {claim.guarantee}"
        f"{format_against(claim.against)}, epsilon {format_epsilon(epsilon)} at delta {claim.delta:g}, "
        f"'{claim.relation}'.{by_itself}"
        + (" Noise was SEEDED: it protects nothing." if manifest.noise == "seeded" else "")
    )


@review_app.command(epilog="Example: cadp-fl site review approve north cadp-release-7")
def approve(outbox: Outbox, event: Event, quiet: Silent = False) -> None:
    """Let the records of a release be fetched. This cannot be taken back."""
    _decide(outbox, event, "approved", quiet=quiet)


@review_app.command(epilog="Example: cadp-fl site review deny north cadp-release-7")
def deny(outbox: Outbox, event: Event, quiet: Silent = False) -> None:
    """Keep the records of a release for good. What it cost stays spent.

    The server sees that they do not come. A release that is made in its place
    is a new event, and is paid for again.
    """
    _decide(outbox, event, "denied", quiet=quiet)


def _outbox_at(path: Path) -> tuple[Path, Path | None]:
    """Return the folder of a site's releases, and its audit log if the path is that of the site's folder."""
    from cadp_fl.site.folder import SiteFolder

    folder = SiteFolder(path)
    return (folder.outbox, folder.audit) if folder.config.is_file() else (path, None)


def _decide(path: Path, event: str, decision: Literal["approved", "denied"], *, quiet: bool) -> None:
    from cadp_fl.site.audit_log import AuditLog
    from cadp_fl.site.review import Review

    outbox, audit = _outbox_at(path)
    manifest = Review(outbox).decide(event, decision)
    if audit is not None:
        AuditLog(audit).write("decision", event=manifest.event_id, outcome=decision, uid=os.getuid())
    if not quiet:
        typer.echo(f"{manifest.event_id}: {decision}, {manifest.records} records.")

"""The commands of a real site's agent: make its folder, serve, look, and put an edited policy into force."""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cadp_fl.cli.console import teller
from cadp_fl.cli.options import AsJson, DataKeys, Silent, data_keys
from cadp_fl.errors import InputError

__all__ = ["init", "reload", "serve", "status"]

Folder = Annotated[Path, typer.Argument(help="The site's folder.", metavar="SITE")]


def init(
    folder: Annotated[Path, typer.Argument(help="The site's folder: a new one.", metavar="SITE")],
    invitation: Annotated[Path, typer.Option(help="The coordinator's invitation.yaml.")],
    name: Annotated[str | None, typer.Option(help="Name of the site; by default the folder's.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The site's records: a MedMNIST file (.npz), a folder of images, DICOM or NIfTI files, or, with "
            "--columns, a CSV or Parquet file."
        ),
    ] = None,
    keys: DataKeys = None,
    columns: Annotated[
        Path | None,
        typer.Option(help="The public schema file of a table, which names its classes."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Names of the classes, from label 0, with commas; the same at every site.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="What the records are, in words that all sites share, such as chest-xray.")
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of the ids that are tested on and never trained on, where the file has no test split (0.2); 0: "
            "nobody is, and no evaluation is answered. Fixed for good."
        ),
    ] = None,
    rehearsal: Annotated[
        Path | None,
        typer.Option(help="A study config in place of --data: the public records that its simulation deals this site."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A policy that was written before, in place of the questions below.")
    ] = None,
    population: Annotated[
        str | None, typer.Option(help="The people that the budget belongs to, by a name that never changes.")
    ] = None,
    unit: Annotated[str | None, typer.Option(help="What is protected: record or patient.")] = None,
    records_per_patient: Annotated[int | None, typer.Option(help="m: records that each patient contributes.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Total of all that ever leaves, for good.")] = None,
    delta: Annotated[
        float | None, typer.Option(help="Total of all that ever leaves; at most 1 / (100 n) and n^-1.5 for n units.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="public or covered: may a record's label be known?")] = None,
    group: Annotated[
        str | None, typer.Option(help="Group of the SuperNode's user, which may then reach the agent and its key.")
    ] = None,
    mark: Annotated[
        Path | None, typer.Option(help="Where the ledger's mark lies: best on a volume of its own.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")] = "auto",
    quiet: Silent = False,
) -> None:
    """Make the folder of a site: its policy, its ledger, and its keys, which never leave it.

    What is not given is asked, on a terminal. Everything in the folder is the
    agent's user's alone, but for what the SuperNode's group has to reach.
    """
    from cadp_fl.config import PolicyConfig, PrivacyUnit, SiteConfig, load_invitation, load_policy, parse
    from cadp_fl.data.sources import SOURCES, source_for
    from cadp_fl.deployment.site_setup import count_units, make_site, refused_by
    from cadp_fl.privacy.accounting import largest_delta

    invited = load_invitation(invitation)
    if (data is None) == (rehearsal is None):
        raise InputError("A site has records. Give --data FILE, or --rehearsal STUDY.yaml for public ones; one.")
    settings: dict[str, Any] = {"site": name or folder.absolute().name, "dataset": dataset, "device": device}
    if columns is not None and (data is None or classes is not None):
        raise InputError(
            "A schema file is of a table, and names its classes. Found --columns without --data, or with --classes; "
            "give --data TABLE --columns FILE."
        )
    if data is not None:
        if dataset is None or (classes is None and columns is None):
            raise InputError(
                "All sites share one schema, which no site reads from its records. Found no --dataset, or no --classes "
                "(of a table, --columns); give both, as the coordinator says."
            )
        settings["data"] = {"path": str(data.absolute())}
        if columns is not None:
            settings["data"] |= {"source": "table", "columns": str(columns.absolute())}
        elif classes is not None:
            source = (source_for(data) if data.exists() else None) or "medmnist"
            settings["data"] |= {"source": source, "classes": [part.strip() for part in classes.split(",")]}
            if "cache" in SOURCES[source].takes:
                settings["data"]["cache"] = str(folder.absolute() / "cache")
        settings["data"] |= data_keys(keys)
    else:
        settings["rehearsal"] = str(rehearsal.absolute()) if rehearsal else None
    settings |= {"group": group, "mark": str(mark.absolute()) if mark else None}
    settings |= {} if test_fraction is None else {"test_fraction": test_fraction}
    config = parse(SiteConfig, settings)
    if policy is None:
        answers: dict[str, Any] = {"population": population or _ask_population(), "unit": unit or _ask("unit")}
        if answers["unit"] == "patient":
            answers["records_per_patient"] = records_per_patient or _ask("records_per_patient")
        protected = parse(PrivacyUnit, {key: answers[key] for key in answers if key != "population"}, where="policy")
        answers |= {
            "epsilon": epsilon or _ask("epsilon"),
            "delta": delta or _ask("delta", lambda: largest_delta(count_units(config, protected))),
            "labels": labels or _ask("labels"),
        }
        allowed = parse(PolicyConfig, answers, where="policy")
    else:
        given = (population, unit, records_per_patient, epsilon, delta, labels)
        if given != (None,) * len(given):
            raise InputError("A policy is given once. Found --policy and a part of one; leave the part out.")
        allowed = load_policy(policy)
    made = make_site(folder, config, allowed, invited)
    if quiet:
        return
    public = made.folder.node.public_key(config.site)
    typer.echo(f"Site '{config.site}' of federation '{invited.federation}': {folder}")
    typer.echo(f"Records: {made.units} training and {made.test_units} test {allowed.unit}s. {made.split.in_words}")
    for sentence in (*made.notes, *([made.caution] if made.caution else [])):
        typer.echo(sentence)
    typer.echo(f"Policy: {made.folder.policy}. Read it: it holds whatever a server asks.")
    typer.echo(
        f"Ledger: a new one of population '{allowed.population}', of which nothing is spent. If these people have one "
        "already, under whatever name, delete this folder and go on with that one: a budget is for good."
    )
    if refused := refused_by(allowed):
        typer.echo("It refuses this, unless you set the key that stands last before the agent starts:")
        for what in refused:
            typer.echo(f"  {what}")
    typer.echo(f"Ledger head: {made.ledger_head}")
    typer.echo(f"The invitation's fingerprint, to compare with the coordinator's by telephone: {invited.fingerprint}")
    typer.echo(f"Next: send {public} to the coordinator, and compare its fingerprint by telephone:")
    typer.echo(f"  {made.fingerprint}")


_QUESTIONS = {
    "population": "Population: whose budget is this? A name that stays the same for every later export",
    "unit": "What is protected: a record, or a patient with all records? (record/patient)",
    "records_per_patient": "How many records does each patient contribute?",
    "epsilon": "Epsilon in all, for good (3 is moderate; there is no default)",
    "delta": "Delta in all: the chance that the bound fails, at most 1 / (100 n) and n^-1.5 for the n units here: {}",
    "labels": "May a record's label be known? (public: yes; covered: no)",
}


def _ask_population() -> str:
    """Return the name of a population that has no ledger yet.

    Raises:
        InputError: it has one, or nobody sits at a terminal.
    """
    population = str(_ask("population"))
    if typer.confirm("Do these people have a ledger already, at this hospital, under whatever name?", default=False):
        raise InputError(
            f"A population has one ledger, for good. Found a second one asked for, for '{population}'; go on with the "
            "site's folder that has the first."
        )
    return population


def _ask(key: str, hint: Callable[[], str] = str) -> Any:
    """Return an answer to a question of the policy.

    Args:
        hint: returns what stands in the question, which takes a while to find out.

    Raises:
        InputError: nobody sits at a terminal.
    """
    from cadp_fl.config import plain_value

    if not sys.stdin.isatty():
        raise InputError(f"A policy says its {key}, which has no default. Found none; give --{key.replace('_', '-')}.")
    answer = typer.prompt(_QUESTIONS[key].format(hint()))
    return plain_value(answer) if key in ("records_per_patient", "epsilon", "delta") else answer


def serve(
    folder: Folder,
    seeded_noise: Annotated[
        int | None,
        typer.Option(help="For tests alone: noise from this seed, which protects nothing. A policy has to allow it."),
    ] = None,
    quiet: Silent = False,
) -> None:
    """Run the site's agent: the one process that reads records, policy and ledger.

    It answers at SITE/run/agent.sock until it is told to end (SIGTERM, SIGHUP
    or Ctrl-C), and then finishes what it was asked first. Told twice, it ends at
    once; what that answer cost stays spent.
    """
    from cadp_fl.ending import handling
    from cadp_fl.site.agent import Agent
    from cadp_fl.site.folder import SiteFolder

    say = teller(silent=quiet)

    def announce(line: str) -> None:
        say(f"{time.strftime('%H:%M:%S')}  {line}")

    agent = Agent(SiteFolder(folder.absolute()), seeded_noise=seeded_noise, announce=announce)

    def end(_number: int, _frame: object) -> None:
        if agent.is_stopping:
            os._exit(1)  # in the middle of an answer, as a crash would: the ledger has what it cost
        agent.stop()

    with handling(end):
        agent.serve()


def status(folder: Folder, as_json: AsJson = False) -> None:
    """Say whether the agent runs, what it does, and whether its policy is the file's."""
    from cadp_fl.site.agent import command
    from cadp_fl.site.folder import SiteFolder

    state = command(SiteFolder(folder.absolute()), "status")
    if as_json:
        typer.echo(json.dumps(state, indent=2))
        return
    since = datetime.fromtimestamp(state["since"], tz=UTC).isoformat(timespec="seconds")
    typer.echo(
        f"The agent of site '{state['site']}' runs since {since} (process {state['pid']}): {state['answered']} answers."
    )
    busy = state["busy_with"]
    seconds = 0 if busy is None else time.time() - busy["since"]
    typer.echo("It is idle." if busy is None else f"It has been busy with '{busy['action']}' for {seconds:.0f} s.")
    typer.echo(
        "Its policy is that of policy.yaml."
        if state["policy_in_force"]
        else "policy.yaml was edited: every request is refused until cadp-fl site reload."
    )


def reload(folder: Folder, quiet: Silent = False) -> None:
    """Put the policy that now stands in policy.yaml into force, and write what changed into the audit log."""
    from cadp_fl.site.agent import command
    from cadp_fl.site.folder import SiteFolder
    from cadp_fl.site.policy_file import in_words

    answer = command(SiteFolder(folder.absolute()), "reload")
    if quiet:
        return
    if answer["changed"]:
        typer.echo(f"The edited policy is in force. {in_words(answer['changes'])}")
    else:
        typer.echo("The policy is the one that was in force.")

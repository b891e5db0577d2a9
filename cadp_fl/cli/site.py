"""The commands of a real site."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cadp_fl.cli.console import console_to, teller
from cadp_fl.cli.options import AsJson, Silent
from cadp_fl.cli.review import review_app
from cadp_fl.errors import EditedPolicyError, InputError, LedgerError
from cadp_fl.privacy.claims import format_against, format_epsilon

__all__ = ["connect", "export", "init", "show", "site_app", "verify"]

site_app = typer.Typer(
    name="site", help="Run a real site: one hospital, its records and its budget.", no_args_is_help=True
)
ledger_app = typer.Typer(
    name="ledger",
    help="The durable ledger: what a site promised to spend at most, and what it spent.",
    no_args_is_help=True,
)
site_app.add_typer(ledger_app)
site_app.add_typer(review_app)

Ledger = Annotated[Path, typer.Argument(help="The ledger's database.", metavar="LEDGER")]
SiteOrLedger = Annotated[
    Path,
    typer.Argument(
        help="The site's folder, whose policy and mark are then taken; or the ledger's database.", metavar="SITE|LEDGER"
    ),
]
Mark = Annotated[
    Path | None,
    typer.Option(
        help="The file that remembers how far the ledger has come, LEDGER.mark by default. Best on another volume, one "
        "that is never restored together with the ledger's."
    ),
]
Policy = Annotated[Path | None, typer.Option(help="The site's policy (YAML).")]


@ledger_app.command(
    epilog="Example: cadp-fl site ledger init ledger.db --mark /witness/ledger.mark --policy policy.yaml"
)
def init(
    path: Ledger,
    mark: Mark = None,
    policy: Policy = None,
    population: Annotated[
        str | None, typer.Option(help="The people that the budget belongs to, by a name that never changes.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="record or patient: what one neighbouring data set may change.")
    ] = None,
    records_per_patient: Annotated[int | None, typer.Option(help="m: records that each patient contributes.")] = None,
    quiet: Silent = False,
) -> None:
    """Make the ledger of a population, once and for all.

    Its terms are those of --policy, or are given one by one. A ledger is never
    made over another, nor where its mark shows that there was one. It is for
    releases by hand: nobody is ever tested on, and a file's test split is left
    alone. Of a site that is tested on too, cadp-fl site init makes the ledger.
    """
    from cadp_fl.config import load_policy
    from cadp_fl.mounts import network_file_system
    from cadp_fl.privacy.durable import DurableLedger

    if policy is not None:
        if (population, unit, records_per_patient) != (None, None, None):
            raise InputError("A ledger's terms are given once. Found --policy and others; leave the others out.")
        terms = load_policy(policy)
        population, unit, records = terms.population, terms.unit, terms.records_per_unit
    elif population is None or unit is None:
        raise InputError(
            "A ledger is of one population and unit. Found none; give --policy, or --population and --unit."
        )
    else:
        if (unit == "patient") != (records_per_patient is not None):
            raise InputError(
                f"--records-per-patient is given for the unit patient, and only then. Found the unit '{unit}'; give "
                "both or neither."
            )
        records = records_per_patient or 1
    ledger = DurableLedger.create(
        path,
        mark=mark,
        population=population,
        unit=unit,  # type: ignore[arg-type]  # checked by the ledger's terms
        records_per_unit=records,
    )
    if (system := network_file_system(path)) is not None:
        typer.echo(
            f"cadp-fl: a ledger lies on a disk of this machine. '{path}' is on a file system of the network "
            f"({system}), whose locks and log SQLite cannot rely on; move ledger and mark before the first plan.",
            err=True,
        )
    if not quiet:
        typer.echo(f"Ledger: {path}, of {ledger.terms.protects}. Mark: {ledger.mark}.")
        typer.echo(ledger.terms.sides.in_words)
        typer.echo(
            f"Head: {ledger.links()[-1].hash} (written down elsewhere, it distinguishes this ledger from any other)"
        )


@ledger_app.command(epilog="Example: cadp-fl site ledger show north")
def show(path: SiteOrLedger, mark: Mark = None, policy: Policy = None, as_json: AsJson = False) -> None:
    """Show what was reserved and spent, plan by plan, and what is left of the policy's total.

    A plan's epsilon holds whatever became of it: it includes the retry reserve,
    and a run that stopped early gives nothing back.
    """
    from cadp_fl.config import load_policy
    from cadp_fl.site.ledger_account import account_of

    folder = path if path.is_dir() else None
    path, mark, _ = _ledger_at(path, mark)
    if policy is not None or folder is None:
        tree = account_of(path, mark=mark, policy=load_policy(policy) if policy is not None else None)
    else:
        tree = _account_with_own_policy(folder, path, mark)
    if as_json:
        typer.echo(json.dumps(tree, indent=2))
    else:
        _plans_table(console_to(), tree)


def _account_with_own_policy(folder: Path, path: Path, mark: Path | None) -> dict[str, Any]:
    """Return what a site's ledger holds. It is shown whatever its policy.yaml is, and that is said."""
    from cadp_fl.config import load_policy
    from cadp_fl.site.agent import check_in_force
    from cadp_fl.site.folder import SiteFolder
    from cadp_fl.site.ledger_account import account_of
    from cadp_fl.site.policy_file import sha256_of

    site = SiteFolder(folder.absolute())
    try:
        tree, note = account_of(path, mark=mark, policy=load_policy(site.policy)), ""
    except (InputError, LedgerError) as error:
        tree, note = account_of(path, mark=mark), f"No limits are shown, since policy.yaml does not fit: {error}"
    else:
        try:
            check_in_force(site, sha256_of(site.policy))
        except EditedPolicyError:
            note = "The limits are those of policy.yaml, which was edited and is NOT in force until it is reloaded."
    return tree | {"policy_note": note}


@ledger_app.command(
    epilog="Example: cadp-fl site ledger verify ledger.db --expect-head 5d41402abc4b2a76b9719d911017c592..."
)
def verify(
    path: SiteOrLedger,
    mark: Mark = None,
    expect_head: Annotated[
        str | None, typer.Option(help="Hash of an entry that was written down elsewhere: the ledger must hold it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every hash of the ledger, its form and its mark; exit status 1 if one does not hold.

    Write the head down where this machine cannot reach, or send it to a
    witness: with --expect-head, a ledger that was put back together with its
    mark, or made again, is found out.
    """
    from cadp_fl.privacy.durable import DurableLedger
    from cadp_fl.privacy.mark import read_mark

    if expect_head is not None and not re.fullmatch(r"[0-9a-f]{64}", expect_head):
        raise InputError(f"A head is 64 hexadecimal digits. Found {len(expect_head)} characters; copy it whole.")
    path, mark, _ = _ledger_at(path, mark)
    ledger = DurableLedger.as_found(path, mark=mark)
    links = ledger.links()
    marked = min(read_mark(ledger.mark).number, links[-1].number)  # others may have added to both since
    expected = next((link.number for link in links if link.hash == expect_head), None)
    if expect_head is not None and expected is None:
        raise LedgerError(
            f"A ledger holds every head that it ever had. '{path}' does not hold {expect_head[:64]!r}: it is another "
            "one, or an older copy. Bring back the newest; if it is lost, so is the population's budget."
        )
    tree = {
        **ledger.terms.model_dump(),
        "entries": len(links),
        "head": links[-1].hash,
        "mark": marked,
        "expected_head_is_entry": expected,
    }
    if as_json:
        typer.echo(json.dumps(tree, indent=2))
        return
    typer.echo(f"The ledger of {ledger.terms.protects} is whole: {len(links)} entries, every hash holds.")
    level = "agrees" if marked == links[-1].number else f"remembers entry {marked}: a crash came before the next"
    typer.echo(f"Mark: {ledger.mark} {level}.")
    if expected is not None:
        typer.echo(f"The expected head is entry {expected} of {links[-1].number}.")
    typer.echo(f"Head: {links[-1].hash}")


@ledger_app.command(epilog="Example: cadp-fl site ledger export ledger.db --output ledger.jsonl")
def export(
    path: SiteOrLedger,
    mark: Mark = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; standard output by default.")
    ] = None,
) -> None:
    """Write every entry with its hashes as JSON lines, for a third party to verify.

    The hash of an entry is the SHA-256 of the previous entry's hash, in
    hexadecimal, followed by the JSON object of its entry, number and time with
    sorted keys, no spaces and ASCII alone. 64 zeros precede entry 0. In Python:
    sha256((previous + json.dumps({"entry": entry, "number": number,
    "time": time}, sort_keys=True, separators=(",", ":"))).encode()).hexdigest()
    """
    from cadp_fl.outputs import new_file
    from cadp_fl.privacy.durable import DurableLedger

    path, mark, _ = _ledger_at(path, mark)
    links = DurableLedger.as_found(path, mark=mark).links()
    lines = "".join(f"{json.dumps(vars(link), sort_keys=True)}\n" for link in links)
    if output is None:
        typer.echo(lines, nl=False)
        return
    with new_file(output, "An exported ledger") as temporary:
        temporary.write_text(lines, encoding="utf-8")
    typer.echo(f"Wrote {len(links)} entries to {output}.")


def _ledger_at(path: Path, mark: Path | None) -> tuple[Path, Path | None, Path | None]:
    """Return a ledger's database, its mark and its policy, as far as a path and an option name them."""
    from cadp_fl.config import load_site
    from cadp_fl.site.folder import SiteFolder

    folder = SiteFolder(path)
    if not path.is_dir():
        return path, mark, None
    folder.check()
    return folder.ledger, mark or load_site(folder.config).mark, folder.policy


def _guarantee(plan: dict[str, Any]) -> str:
    if plan["guarantee"] == "none":
        noise = plan["conditions"]["noise"]
        return "NOT protected" + ("" if noise == "entropy" else f": noise {noise}")
    return str(plan["guarantee"]) + format_against(plan["against"])


_SIDES = {"train": "training", "test": "test"}


def _plans_table(console: Console, tree: dict[str, Any]) -> None:
    """Print plans and totals. Names of plans came from servers: control characters and markup have no effect."""
    entries = "1 entry" if tree["entries"] == 1 else f"{tree['entries']} entries"
    title = f"Ledger of population '{tree['population']}', unit {tree['unit']}, {entries}"
    if not tree["plans"]:
        console.print(Text(f"{title}: no plan was reserved, and nothing is spent."), soft_wrap=True)
    table = Table(
        title=title,
        title_justify="left",
        caption="epsilon is of what a plan protects, with its retry reserve; - where it protects nothing",
        caption_justify="left",
    )
    for heading in ("plan", "guarantee", "replace-one", "add-or-remove", "delta", "retry", "spent"):
        table.add_column(heading, justify="left" if heading in ("plan", "guarantee", "spent") else "right")
    for plan in tree["plans"]:
        amounts = {**dict.fromkeys(plan["planned"], 0), **plan["spent"]}
        planned = {stage: f" of {count}" for stage, count in plan["planned"].items()}
        is_protected = plan["epsilon"] is not None
        spent = ", ".join(f"{stage} {count}{planned.get(stage, '')}" for stage, count in amounts.items())
        table.add_row(
            Text(ascii(plan["plan"])[1:-1]),
            _guarantee(plan),
            format_epsilon(plan["epsilon"]),
            format_epsilon(plan["epsilon_add_remove"]),
            f"{plan['delta']:g}" if is_protected else "-",
            format_epsilon(plan["retry_reserve"]["epsilon"] if is_protected else None),
            spent,
        )
    if tree["plans"]:
        console.print(table)
    if "split" not in tree:
        console.print(
            "The ledger does not say who was tested on (its format is 1): what was given out about test units counts "
            "for training units too.",
            soft_wrap=True,
        )
    for units, total in tree["totals"].items():
        limit = total["limit"]
        of = "" if limit is None else f", of the policy's {limit['epsilon']:g} at {limit['delta']:g}"
        if limit is not None or total["delta"]:
            is_open = any(plan["guarantee"] != "end-to-end" for plan in tree["plans"] if plan["units"] == units)
            bound = "what is protected of all plans" if is_open else "all plans"
            console.print(
                f"On {_SIDES[units]} units, {bound} together: epsilon {format_epsilon(total['epsilon'])} at delta "
                f"{total['delta']:g}{of}.",
                soft_wrap=True,
            )
    if note := tree.get("policy_note"):
        console.print(Text(note), soft_wrap=True)
    for what in tree["unprotected"]:
        console.print(Text(f"NO bound in all, since this is not protected: {ascii(what)[1:-1]}."), soft_wrap=True)


@site_app.command(epilog="Example: cadp-fl site connect /srv/cadp-fl")
def connect(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The site's folder, of which this user can read node/ alone.", metavar="FOLDER", readable=False
        ),
    ],
    print_: Annotated[
        bool, typer.Option("--print", help="Print the environment and command, for a unit of your own; start nothing.")
    ] = False,
    quiet: Silent = False,
) -> None:
    """Keep the site connected to its coordinator until this command is ended (Ctrl-C, or SIGTERM).

    Run it as the SuperNode's user, who can read nothing of the site but its
    node/ folder and reach the agent's socket.
    """
    from cadp_fl.deployment import supernode
    from cadp_fl.site.folder import SiteFolder

    node = SiteFolder(folder.absolute()).node
    if print_:
        typer.echo(supernode.print_command(node))
        return
    supernode.connect(node, announce=teller(silent=quiet))

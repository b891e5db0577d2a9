"""The command that attacks what leaves a site."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from cadp_fl.cli.console import console_to
from cadp_fl.cli.options import AsJson, Quiet
from cadp_fl.errors import CadpError, InputError

if TYPE_CHECKING:
    from cadp_fl.evaluation.audit import AuditSettings
    from cadp_fl.evaluation.findings import Finding

__all__ = ["audit"]

EXAMPLE_EPSILONS, EXAMPLE_DELTA = (1.0, 3.0), 1e-5
NO_ADVICE = "No claim was given, so epsilon 1 and 3 at delta 1e-5 were audited. That is no advice on a budget."
ONE_RUN_FALSE_ALARM = 0.05
CANDIDATES = (10, 1000)
NUMBERS = ("claim", "certified", "of claim")
MOST_NAME = len("grid-gaussian")


def audit(
    mechanism: Annotated[
        list[str] | None,
        typer.Option(help="What to attack, a mechanism of releases or what leaves beside one; all. May be repeated."),
    ] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="A claim to audit, under replace-one. May be repeated.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Of every claim.")] = None,
    clip_norm: Annotated[float, typer.Option(help="C, of a latent.")] = 1.0,
    dims: Annotated[int, typer.Option(help="Dimensions of a latent; time grows with them.")] = 16,
    draws: Annotated[int, typer.Option(help="Releases of the worst pair of records.")] = 1_000_000,
    false_alarm: Annotated[float, typer.Option(help="Probability that the audit refutes any honest code.")] = 1e-6,
    seed: Annotated[
        int | None, typer.Option(help="Repeats the noise; without one it is the system's entropy.", min=0)
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Attack what leaves a site, and hold what that certifies against the claims.

    It releases the records that are hardest to hide with the code that ships,
    and certifies a lower bound on epsilon: of a release with each mechanism,
    with its labels; of a whole shuffled release; of counts, sums, moments and
    evaluations; of steps of DP-SGD. It tests that noise is used once, that the order of a release says
    nothing and that every unit is there once, and asks a whole site in memory.
    A bound above the claim, or a broken law, refutes the code as it runs here,
    with exit status 1. One below proves nothing; close to the claim, it says
    that the attack is strong. A million draws reach .9 of a release's claims
    from about 1 to 8.

    It reads no records. Without --epsilon and --delta it audits epsilon 1 and
    3 at delta 1e-5, which is no advice on a budget.
    """
    import torch

    from cadp_fl.evaluation.audit import AuditSettings
    from cadp_fl.privacy.noise import NoiseSource
    from cadp_fl.standalone.audit import audit_all, everything

    if (epsilon is None) != (delta is None):
        raise InputError(
            f"A claim is an epsilon at a delta. Found --{'delta' if epsilon is None else 'epsilon'} alone; give both, "
            "or neither for examples."
        )
    epsilons = tuple(dict.fromkeys(epsilon)) if epsilon is not None else EXAMPLE_EPSILONS
    settings = AuditSettings(EXAMPLE_DELTA if delta is None else delta, clip_norm, dims, draws, false_alarm)
    names = tuple(mechanism or everything())
    noise = NoiseSource.from_entropy() if seed is None else NoiseSource.from_seed(seed)
    torch.set_num_threads(1)  # batches are small: more threads would wait for each other
    console, findings = console_to(), []
    with console_to(quiet=quiet or as_json).status("Attacking ...") as status:
        for finding in audit_all(names, epsilons, settings, noise=noise):
            findings.append(finding)
            status.update(f"Attacking ... {finding.mechanism} at epsilon {finding.claim:.3g} is done.")
    if as_json:
        report = {
            "schema_version": 1,
            "relation": "replace-one",
            "settings": asdict(settings) | {"noise": noise.kind},
            "findings": [finding.to_json() for finding in findings],
            "limits": [_limits(each, settings.delta) for each in epsilons],
        }
        typer.echo(json.dumps(report if epsilon is not None else report | {"note": NO_ADVICE}, indent=2))
    else:
        _print_findings(console, findings, settings)
        _print_limits(console, epsilons, settings.delta)
        if epsilon is None:
            console.print(NO_ADVICE, soft_wrap=True)
    _check(findings)


def _check(findings: list["Finding"]) -> None:
    """Fail where the code does not do what an event says.

    Raises:
        CadpError: a bound is above its claim, or a law is broken.
    """
    above = [
        f"{finding.mechanism} at epsilon {finding.claim:.3g}"
        for finding in findings
        if any(result.is_refuting for result in finding.attacks)
    ]
    broken = [
        f"{finding.mechanism} at epsilon {finding.claim:.3g} ({', '.join(finding.broken_laws)})"
        for finding in findings
        if finding.broken_laws
    ]
    found = [
        *(
            [f"A certified lower bound on epsilon is at most the claim. It is above it for {', '.join(above)}"]
            * bool(above)
        ),
        *([f"Noise, order and units follow the laws of a release. Broken: {', '.join(broken)}"] * bool(broken)),
    ]
    if found:
        raise CadpError(
            f"{'. '.join(found)}, so what runs here does not do what the event says; release nothing with it."
        )


def _limits(epsilon: float, delta: float) -> dict[str, Any]:
    """Return the canaries without which no audit of one run shows that epsilon is exceeded, and the linkage bounds."""
    from cadp_fl.evaluation.bounds import canaries_needed, linkage_bound

    return {
        "epsilon": epsilon,
        "canaries": canaries_needed(epsilon, ONE_RUN_FALSE_ALARM),
        "canaries_false_alarm": ONE_RUN_FALSE_ALARM,
        "linkage": {str(candidates): linkage_bound(epsilon, delta, candidates) for candidates in CANDIDATES},
    }


def _print_findings(console: Console, findings: list["Finding"], settings: "AuditSettings") -> None:
    table = Table(
        title=f"Certified lower bounds on epsilon at delta {settings.delta:g}, replace-one", title_justify="left"
    )
    for heading in ("mechanism", "claim", "certified", "of claim", "attack", "verdict"):
        justify: Literal["left", "right"] = "right" if heading in NUMBERS else "left"
        is_name = heading == "mechanism"  # a shuffle's is long
        table.add_column(heading, justify=justify, no_wrap=not is_name, min_width=MOST_NAME if is_name else None)
    for finding in findings:
        table.add_row(
            finding.mechanism,
            f"{finding.claim:.3f}",
            f"{finding.lower_bound:.3f}",
            f"{finding.lower_bound / finding.claim:.2f}",
            finding.strongest.attack,
            "REFUTED" if finding.is_refuted else "not refuted",
        )
    console.print(table)
    broken, tested = (sum(map(len, each)) for each in zip(*((f.broken_laws, f.laws) for f in findings), strict=True))
    console.print(
        f"C = {settings.clip_norm:g}, {settings.dims} dimensions, {settings.draws:,} draws of the worst pair. attack: "
        f"the strongest of several. Laws of fresh noise, secret order and whole units: {broken} of {tested} broken. An "
        f"audit of honest code refutes any of it with probability {settings.false_alarm:g}, and a claim that is not "
        "refuted is not proven.",
        soft_wrap=True,
    )


def _print_limits(console: Console, epsilons: tuple[float, ...], delta: float) -> None:
    table = Table(title="What an epsilon allows", title_justify="left")
    headings = ("epsilon", "canaries in one run", *(f"linked among {count:,}" for count in CANDIDATES))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for epsilon in epsilons:
        limits = _limits(epsilon, delta)
        canaries = limits["canaries"]
        linked = (f"{chance:.2%}" for chance in limits["linkage"].values())
        table.add_row(f"{epsilon:g}", f"{canaries:,}" if canaries < 1e9 else f"{canaries:.1e}", *linked)
    console.print(table)
    console.print(
        "canaries: with fewer, an audit of a single run cannot show that epsilon is exceeded, at a false alarm of "
        f"{ONE_RUN_FALSE_ALARM:g}, even if it guesses every one right. linked: how often, at most, an attacker finds "
        "out which of so many equally likely records a released one is of.",
        soft_wrap=True,
    )

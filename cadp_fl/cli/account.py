"""The command that answers privacy questions without a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cadp_fl.cli.console import console_to
from cadp_fl.cli.options import AsJson, Override

if TYPE_CHECKING:
    from cadp_fl.privacy.costs import Costs
    from cadp_fl.study.planned_costs import MethodAccount, StudyAccount

__all__ = ["account", "epsilon", "noise", "plan"]

account = typer.Typer(
    no_args_is_help=True,
    help="Answer privacy questions without a run, under replace-one and under add-or-remove. Epsilons are rounded up.",
)

_EVENTS = (
    "gaussian:clip-norm=C,noise-std=S; laplace:clip-norm=C,noise-scale=B; "
    "privunit:latent-epsilon=E (label-epsilon=0, classes=0, shuffled-units=0); "
    "dp-sgd:clip-norm=C,noise-std=S,sampling-rate=Q,steps=T; randomized-response:epsilon=E; histogram:noise-std=S "
    "(histograms=1, times=1); sum:clip-norm=C,noise-std=S (shares=1); moments:noise-std=S (count-weight=0.25, "
    "sum-weight=1, shared-weight=1, class-weight=1, shares=1). All but dp-sgd take records-per-patient=M."
)
_Delta = Annotated[
    float | None, typer.Option("--delta", help="At most 1 / (10 n). Needed wherever noise is Gaussian; no default.")
]


@account.command(epilog="Example: cadp-fl account plan configs/quickstart.yaml --set budget.epsilon=1")
def plan(
    config: Annotated[Path, typer.Argument(help="A study config (YAML).")],
    set_: Override = None,
    as_json: AsJson = False,
) -> None:
    """Show what every method of a study would spend at a site.

    Event by event and composed, with the retry reserve, what all methods would
    compose to, and what one more round or release would cost. No record is
    read.
    """
    from cadp_fl.study.planned_costs import account_study

    planned = account_study(config, set_ or [])
    if as_json:
        typer.echo(json.dumps(planned.to_json(), indent=2))
    else:
        _print_study(console_to(), planned)


@account.command(epilog="Example: cadp-fl account epsilon gaussian:clip-norm=1,noise-std=7.4612 --delta 1e-5")
def epsilon(
    events: Annotated[list[str], typer.Argument(help=f"One or more events of one plan: {_EVENTS}", metavar="EVENT...")],
    delta: _Delta = None,
    as_json: AsJson = False,
) -> None:
    """Show what events cost, each alone and all as one plan that was fixed in advance.

    An event is written gaussian:clip-norm=1,noise-std=7.46 or
    laplace:clip-norm=1,noise-scale=2 or
    dp-sgd:clip-norm=1,noise-std=2,sampling-rate=0.1,steps=30 or
    randomized-response:epsilon=0.5 or histogram:noise-std=9 or
    sum:clip-norm=8,noise-std=270 or moments:noise-std=9.6; all but dp-sgd take
    records-per-patient=M too.
    """
    from cadp_fl.privacy.costs import costs_of
    from cadp_fl.privacy.notation import parse_event

    costs = costs_of([parse_event(text) for text in events], delta)
    if as_json:
        typer.echo(json.dumps(costs.to_json(), indent=2))
    else:
        _print_costs(console_to(), costs)


@account.command(epilog="Example: cadp-fl account noise gaussian:clip-norm=4 --epsilon 3 --delta 1e-5")
def noise(
    event: Annotated[str, typer.Argument(help=f"An event without its noise. With it: {_EVENTS}", metavar="EVENT")],
    budget: Annotated[float, typer.Option("--epsilon", help="Budget, under replace-one. No default.")],
    delta: _Delta = None,
    beside: Annotated[
        list[str] | None, typer.Option("--beside", help="Another event of the same plan. May be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the least noise with which an event, and all beside it, meets a budget.

    Of privunit, which adds no noise, the largest epsilon of a latent.
    """
    from cadp_fl.privacy.costs import least_noise
    from cadp_fl.privacy.event import LATENT_EPSILON
    from cadp_fl.privacy.notation import parse_event, parse_noiseless

    asked = parse_noiseless(event)
    amount, costs = least_noise(asked, budget, delta, [parse_event(text) for text in beside or []])
    if as_json:
        typer.echo(json.dumps({asked.noise.replace("-", "_"): amount, **costs.to_json()}, indent=2))
    else:
        console = console_to()
        shown = _rounded_down(amount) if asked.noise == LATENT_EPSILON else _rounded_up(amount)
        console.print(f"{asked.noise}: {shown}")
        _print_costs(console, costs)


def _rounded_up(amount: float) -> str:
    """Return an amount of noise with six significant digits, no smaller than it is."""
    from decimal import ROUND_CEILING

    return _six_digits(amount, ROUND_CEILING)


def _rounded_down(amount: float) -> str:
    """Return an epsilon that a budget allows with six significant digits, no larger than it is."""
    from decimal import ROUND_FLOOR

    return _six_digits(amount, ROUND_FLOOR)


def _six_digits(amount: float, rounding: str) -> str:
    from decimal import Context, Decimal

    return f"{Context(prec=6, rounding=rounding).plus(Decimal(repr(amount))).normalize():f}"


def _cost_table(title: str, costs: "Costs") -> Table:
    from cadp_fl.privacy.claims import format_epsilon

    table = Table(title=title, title_justify="left")
    for heading in ("stage", "event", "replace-one", "add-or-remove"):
        table.add_column(heading, justify="right" if "-o" in heading else "left", overflow="fold")
    for cost in costs.events:
        table.add_row(
            cost.event.stage,
            _words(cost.event.model_dump()),
            format_epsilon(cost.alone.replace_one),
            format_epsilon(cost.alone.add_remove),
        )
    return table


def _words(event: dict[str, Any]) -> str:
    """Return an event's kind and parameters."""
    left_out = {
        "kind",
        "stage",
        "sha256",
        "dataset",
        *(name for name in ("records_per_unit", "shares") if event.get(name) == 1),
    }
    parameters = [_parameter(name, value) for name, value in event.items() if name not in left_out]
    return f"{event['kind']}: {', '.join(parameters)}"


def _parameter(name: str, value: Any) -> str:
    if name == "what":
        return str(value)
    return f"{name.replace('_', '-')} {_rounded_up(value) if name.startswith('noise') else f'{value:g}'}"


def _print_costs(console: Console, costs: "Costs") -> None:
    from cadp_fl.privacy.claims import format_epsilon

    title = "Epsilon of each event alone" + (f", at delta {costs.delta:g}" if costs.delta is not None else ", no delta")
    table = _cost_table(title, costs)
    if len(costs.events) > 1:
        both = costs.together
        together = format_epsilon(both.replace_one), format_epsilon(both.add_remove)
        table.add_row("in all", "composed, as one plan that was fixed in advance", *together)
    console.print(table)


def _print_study(console: Console, study: "StudyAccount") -> None:
    from cadp_fl.privacy.claims import format_against, format_epsilon

    for each in study.methods:
        _print_method(console, each)
    together = study.together
    if together.epsilon is None:
        console.print(
            f"All methods on the same records: no guarantee. Unprotected: {'; '.join(together.unprotected)}. What is "
            f"protected adds up to epsilon {format_epsilon(study.protected_together.replace_one)}.",
            soft_wrap=True,
        )
    else:
        console.print(
            f"All methods on the same records: epsilon {format_epsilon(together.epsilon)} (add-or-remove "
            f"{format_epsilon(study.protected_together.add_remove)}) at delta {together.delta:g}"
            f"{format_against(together.against)}; across plans, epsilons and deltas add.",
            soft_wrap=True,
        )
    _print_test(console, study)
    console.print(
        f"Relation: {study.relation}. delta is small enough for sites of up to {study.careful_cohort} {study.unit}s, "
        f"and of up to {study.largest_cohort} whose policies allow a large delta. No record was read, and nothing was "
        "run."
        + (" Noise is SEEDED: such a run protects nothing, and no epsilon holds." if study.noise == "seeded" else ""),
        soft_wrap=True,
    )


def _print_test(console: Console, study: "StudyAccount") -> None:
    from cadp_fl.privacy.claims import format_epsilon

    test = study.test
    if test.each is None or test.together is None:
        said = (
            "exact test results leave (evaluation.metrics: exact), and no epsilon covers them; a real site refuses "
            "that unless its policy allows it"
        )
    else:
        each, both = (f"{format_epsilon(cost.epsilon)} at delta {cost.delta:g}" for cost in (test.each, test.together))
        said = (
            f"each method's classifier is evaluated once with noise, at most epsilon {each}; all methods at most "
            f"epsilon {both}, under '{test.relation}'"
        )
    console.print(
        f"Test {study.unit}s: {said}. No test {study.unit} is a training {study.unit}: this is apart from all else.",
        soft_wrap=True,
    )


def _print_method(console: Console, planned: "MethodAccount") -> None:
    from cadp_fl.privacy.claims import format_against, format_epsilon

    delta, claim = planned.costs.delta or 0.0, planned.claim
    table = _cost_table(f"{planned.method}: epsilon of each event alone, at delta {delta:g}", planned.costs)
    if planned.retry.epsilon:
        table.add_row(
            "retries",
            f"set aside for results that a crash lost; adds, and so does its delta {planned.retry.delta:g}",
            format_epsilon(planned.retry.epsilon),
            format_epsilon(planned.retry.epsilon),
        )
    figures = {
        "end-to-end": (claim.epsilon, claim.epsilon_add_remove),
        "given-flow": (claim.epsilon_if_flow_were_fixed, claim.epsilon_if_flow_were_fixed_add_remove),
        "none": (None, None),
    }[claim.guarantee]
    words = {
        "end-to-end": "end-to-end",
        "given-flow": "NOT end-to-end: it would hold had the flow been fixed without these records",
        "none": "no guarantee",
    }[claim.guarantee]
    guarantee = f"{words}{format_against(claim.against)}; at delta {claim.delta:g}"
    table.add_row("in all", guarantee, *(format_epsilon(figure) for figure in figures))
    console.print(table)
    for more in planned.one_more:
        console.print(
            f"  {more.what} would be a new plan, epsilon {format_epsilon(more.cost.replace_one)} (add-or-remove "
            f"{format_epsilon(more.cost.add_remove)}) at delta {more.delta:g}; across plans epsilons and deltas add: "
            f"{format_epsilon(more.total.replace_one)} ({format_epsilon(more.total.add_remove)}) at "
            f"{more.total_delta:g} in all.",
            soft_wrap=True,
        )
    if planned.not_shuffled:
        console.print(f"  Its release is accounted message by message: {planned.not_shuffled}.", soft_wrap=True)
    for declared in claim.declared:
        console.print(f"  This rests on a declaration: {declared}.", soft_wrap=True)

"""The privacy statement in words: who is protected against whom, what is covered, and what is not."""

from collections.abc import Collection, Mapping

from cadp_fl.config import StudyConfig
from cadp_fl.privacy.accounting import DeclaredPublic
from cadp_fl.privacy.claims import FLOW_WEIGHTS, Claim, format_epsilon, relation_of
from cadp_fl.privacy.ledger import Plan

__all__ = ["RESUMED", "assumptions", "caution_on_flow", "not_covered", "statement_of_method", "statement_of_study"]

_ASSUMPTIONS = [
    "DP-SGD draws a fresh Poisson sample for each step; that the accountant's pair of distributions dominates every "
    "replaced record under such sampling is checked numerically, not proven here.",
    "Config, architecture and clip norms were chosen without looking at the training records, which nothing here can "
    "check, and each record's site and its split into training and test do not depend on its image.",
]

_NOT_COVERED = [
    "Patients as such: the unit is a record, and every epsilon is for one record, whatever else the patient has there.",
    "Test records: in a simulation their confusion counts and score histograms are exact.",
    "Losses and bits per dimension of training records, which a simulation shows and a real site keeps.",
    "Timing, failures, and the fact that a site took part.",
    "What else leaves a site: another run, a release made apart, or what an app that this study is a part of sends.",
    "What floating-point rounding of noised values reveals, above all under weights that a server chose to that end.",
]


def assumptions(attributes: Collection[str]) -> list[str]:
    """Return what every claim assumes, of records with some attributes or with none."""
    public = (
        "Labels are public: the number of training records of each class at a site is told to all, by declaration, so "
        "no claim covers a record's label."
    )
    if attributes:
        public = (
            "Labels and attributes are public: the number of training records of each class at a site is told to all, "
            "and each released record leaves with its true label and attributes, by declaration, so no claim covers "
            "them."
        )
    patients = (
        "No patient is at two sites, and none has two records. If one has m records, at any sites, what holds for that "
        "patient is m times the epsilon, at m exp((m - 1) epsilon) times the delta."
    )
    return [patients, public, *_ASSUMPTIONS]


def not_covered(attributes: Collection[str]) -> list[str]:
    """Return what no claim covers, of records with some attributes or with none."""
    own = "A record's label and attributes" if attributes else "A record's label"
    return [f"{own}, and the number of records of a site.", *_NOT_COVERED]


def statement_of_method(name: str, claim: Claim, *, noise: str, relation: str) -> str:
    """Return what may be claimed of a method under a neighbouring relation, if only it had been run."""
    if claim.guarantee == "none":
        return f"{name}: no privacy. This left the sites without any protection: {'; '.join(claim.unprotected)}."
    holds = "would be, had the noise not been seeded," if noise == "seeded" else "is"
    if claim.guarantee == "end-to-end":
        return (
            f"{name}: everything computed from training records that leaves a site is accounted. For two data sets of "
            f"a site that differ by '{relation}', it {holds} ({format_epsilon(claim.epsilon)}, {claim.delta:g})-"
            "differentially private, over all steps of all rounds, against the server and all that it shares with. "
            f"(The same events under add-or-remove: epsilon {format_epsilon(claim.epsilon_add_remove)}.)"
            + "".join(f" This rests on a declaration: {each}." for each in claim.declared)
        )
    conditional = format_epsilon(claim.epsilon_if_flow_were_fixed)
    if FLOW_WEIGHTS.what in claim.unprotected:
        story = (
            "The flow was trained on the same records without differential privacy, and its weights left the sites; "
            "nothing bounds what they reveal."
        )
        truth = "it was not"
    else:
        story = (
            f"It uses {'; '.join(claim.unprotected)}; nothing bounds what that flow, and all that is made with it, "
            "reveals of the records that it was trained on."
        )
        truth = "no one has declared that it was"
    return (
        f"{name}: NO end-to-end guarantee. {story} The released records alone would be ({conditional}, "
        f"{claim.delta:g})-differentially private ('{relation}') had the flow been fixed without these "
        f"records{' and the noise not been seeded' if noise == 'seeded' else ''}; {truth}."
    )


def caution_on_flow(plan: Plan, origin: str) -> str:
    """Return what speaks against a plan's declaration of a public flow, or nothing.

    Args:
        origin: name of the data set that the private records are from.
    """
    if not any(isinstance(event, DeclaredPublic) and event.dataset == origin for event in plan.events):
        return ""
    return (
        f"CAUTION: the flow says that it was trained on '{origin}', and these records are of '{origin}' too. If a "
        "record is among those that it was trained on, the declaration is wrong for it, and so is the claim."
    )


RESUMED = (
    "The run was interrupted and went on from its last finished phase; what the interrupted attempt of a phase had "
    "computed was thrown away, and is not in these accounts, though its figures could be read until then. At a real "
    "site it would have been spent, and the site's own ledger would count it."
)


def statement_of_study(
    study: StudyConfig, attributes: Collection[str], methods: Mapping[str, str], *, resumed: bool
) -> str:
    """Return the paragraph on a whole study, of records with some attributes or with none."""
    source = (
        "The privacy noise of this run was derived from a seed, so that the run can be repeated. Whoever knows the "
        "seed can remove the noise: nothing released here is protected."
        if study.noise == "seeded"
        else "The privacy noise came from the operating system's entropy at each site."
    )
    return " ".join(
        [
            f"This is a simulation of {study.sites.count} sites. The privacy unit is one {study.budget.unit} of a "
            f"site's training data; the neighbouring relation is '{relation_of(attributes)}'.",
            source,
            *([RESUMED] if resumed else []),
            *methods.values(),
            "Each statement holds if only that method had been run; all methods of this study together compose to what "
            "privacy.json says.",
            "Assumptions:",
            *assumptions(attributes),
            "Not covered:",
            *not_covered(attributes),
        ]
    )

"""The privacy statement in words: who is protected against whom, what is covered, and what is not."""

from collections.abc import Mapping

from cadp_fl.config import StudyConfig
from cadp_fl.privacy.claims import Claim, format_epsilon

__all__ = ["ASSUMPTIONS", "NOT_COVERED", "statement_of_method", "statement_of_study"]

ASSUMPTIONS = [
    "No patient is at two sites. If one is at k sites, the claim for that patient is the sum over those sites.",
    "The number of training records of a site is public, and so are the classes and their counts, by declaration.",
    "DP-SGD draws a fresh Poisson sample for each step; that the accountant's pair of distributions dominates every "
    "replaced record under such sampling is checked numerically, not proven here.",
    "Config, architecture, clip norms and splits were chosen without looking at the training records.",
]

NOT_COVERED = [
    "Test records: in a simulation their confusion counts and score histograms are exact.",
    "Losses and bits per dimension of training records, which a simulation shows and a real site keeps.",
    "Timing and the fact that a site took part.",
    "Attacks on floating-point arithmetic by a flow that the server chose with bad intent.",
]


def statement_of_method(name: str, claim: Claim) -> str:
    """Return what may be claimed of a method, if only it had been run."""
    delta = f"delta = {claim.delta:g}"
    if claim.guarantee == "end-to-end":
        return (
            f"{name}: everything computed from training records that leaves a site is accounted. For two data sets of "
            f"a site that differ by '{claim.relation}', it is ({format_epsilon(claim.epsilon)}, delta)-differentially "
            f"private with {delta}, over all steps of all rounds, against the server and whoever it shares with "
            f"(the same events under add-or-remove: epsilon {format_epsilon(claim.epsilon_add_remove)})."
        )
    if claim.guarantee == "given-flow":
        conditional = format_epsilon(claim.epsilon_if_flow_were_fixed)
        return (
            f"{name}: NO end-to-end guarantee. The flow was trained on the same records without differential privacy, "
            "and its weights left the sites; nothing bounds what they reveal. Epsilon "
            f"{conditional} ({delta}, '{claim.relation}') would hold for the released records had the flow been fixed "
            "without these records; it was not."
        )
    return f"{name}: no privacy. Weights trained on the records without any protection left the sites."


def statement_of_study(study: StudyConfig, methods: Mapping[str, str]) -> str:
    """Return the paragraph on a whole study."""
    noise = (
        "The privacy noise of this run was derived from a seed, so that the run can be repeated. Whoever knows the "
        "seed can remove the noise: nothing released here is protected. The figures say what the same run with "
        "entropy noise would have spent."
        if study.noise == "seeded"
        else "The privacy noise came from the operating system's entropy at each site."
    )
    return " ".join(
        [
            f"This is a simulation of {study.sites.count} sites. The privacy unit is one {study.budget.unit} of a "
            f"site's training data; neighbouring data sets replace one.",
            noise,
            *methods.values(),
            "Each statement holds if only that method had been run; all methods of this study together compose to what "
            "privacy.json says.",
            "Assumptions:",
            *ASSUMPTIONS,
            "Not covered:",
            *NOT_COVERED,
        ]
    )

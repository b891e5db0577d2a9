"""The privacy statement in words: who is protected against whom, what is covered, and what is not."""

from collections.abc import Mapping, Sequence

from cadp_fl.config import StudyConfig
from cadp_fl.privacy.claims import FLOW_WEIGHTS, Claim, Scope, Together, format_delta, format_epsilon, relation_of
from cadp_fl.privacy.events import DeclaredPublic
from cadp_fl.privacy.plan import Plan

__all__ = [
    "RESUMED",
    "RESUMED_AT_SITES",
    "assumptions",
    "caution_on_flow",
    "not_covered",
    "statement_of_method",
    "statement_of_study",
    "statement_on_test_units",
]


_SAMPLED = (
    "DP-SGD draws a fresh Poisson sample for each step; that the accountant's pair of distributions dominates any "
    "replaced {unit} under such sampling is checked numerically, not proven here."
)


def assumptions(scope: Scope, *, sampled: bool = True) -> list[str]:
    """Return what every claim assumes.

    Args:
        sampled: whether DP-SGD may be among what is claimed.
    """
    return [
        _patients(scope),
        _labels(scope),
        f"The number of {scope.unit}s that each site trains on, and of those that it tests on, is public. A "
        f"{scope.unit} is replaced in its place: the others keep their order.",
        *([_SAMPLED.format(unit=scope.unit)] if sampled else []),
        "Config, architecture, clip norms and the split of the budget were chosen without looking at the training "
        "records, which nothing here can check, and each record's site and its split into training and test do not "
        "depend on what else it holds.",
    ]


def _patients(scope: Scope) -> str:
    if scope.unit == "record":
        return (
            "No patient is at two sites, and none has two records. If one has m records, at any sites, what holds for "
            "that patient is m times the epsilon, at m exp((m - 1) epsilon) times the delta."
        )
    m = scope.records_per_unit
    return (
        "No patient is at two sites; for one who is at k sites, what holds is the sum over those sites. Each patient "
        f"contributes exactly {m} record{'s' if m > 1 else ''} to a release: the first that the site has, and blanks, "
        "clipped and noised like records, where there are fewer. To a gradient it contributes the mean of those it "
        "has, and to sums and moments those it has and nothing in the other places."
    )


def _labels(scope: Scope) -> str:
    if scope.labels == "covered":
        return (
            "Labels are covered: a released record leaves with a label drawn by randomized response and is decoded "
            "under that one alone, and the number of records of each class is released with noise."
        )
    if scope.attributes:
        return (
            "Labels and attributes are public: the number of training records of each class at a site is known to all, "
            "and each released record leaves with its true label and attributes, by declaration, so no claim covers "
            "them."
        )
    return (
        "Labels are public: the number of training records of each class at a site is known to all, by declaration, so "
        "no claim covers a record's label."
    )


def not_covered(scope: Scope, *, deployed: bool = False) -> list[str]:
    """Return what no claim covers.

    Args:
        deployed: whether the sites are real ones, which keep what a simulation shows.
    """
    public = {"covered": [], "public": ["A record's label."]}[scope.labels]
    if scope.attributes:
        public = ["A record's label and attributes."]
    patients = (
        "Patients as such: the unit is a record, and each epsilon is for one, whatever else the patient has there."
    )
    shown = ["Losses and bits per dimension of training records, which a simulation shows and a real site keeps."]
    return [
        *public,
        *([patients] if scope.unit == "record" else []),
        "What delta allows: the bound by epsilon may fail with a chance of delta. A mechanism that gives each "
        f"{scope.unit} away whole with that chance has epsilon 0 at delta, and gives one of n {scope.unit}s away with "
        "a chance of up to n delta. A real site's policy holds delta to 1 / (100 n) and n^-1.5, unless its steward "
        "allows 1 / (10 n), and refuses noise below a floor.",
        f"The number of {scope.unit}s of a site.",
        "Test records, which are no training records: what is given out about them has a line of its own.",
        *([] if deployed else shown),
        "Timing, failures and refusals, a steward's decision to let a release go or not, and the fact that a site took "
        "part.",
        "What else leaves a site: another run, a release made apart, or what an app around this study sends."
        + (" Each site's ledger adds up the first two." if deployed else ""),
        "What floating-point rounding of noised values reveals, above all under weights that a server chose to that "
        "end. Of releases by the mechanism grid-gaussian, and of noised counts, sums and moments, it reveals "
        "nothing.",
    ]


def statement_of_method(name: str, claim: Claim, *, noise: str, relation: str, own: Claim | None = None) -> str:
    """Return what may be claimed of a method under a neighbouring relation.

    Args:
        name: of the method.
        claim: what holds; in a simulation, if only this method had been run.
        noise: where it comes from.
        relation: the neighbouring relation.
        own: what the method's own plan would allow, where other methods were carried out on the same records.
    """
    if own is not None and own.guarantee != claim.guarantee:
        beside = sorted(set(claim.unprotected) - set(own.unprotected))
        alone = own.epsilon if own.guarantee == "end-to-end" else own.epsilon_if_flow_were_fixed
        costs = "would cost, had the noise not been seeded," if noise == "seeded" else "costs"
        return (
            f"{name}: NO end-to-end guarantee. Of the same records this left the sites unprotected, by this method or "
            f"another: {'; '.join(beside)}. Nothing bounds what that reveals. By itself the method {costs} "
            f"{_pair(alone, own.delta)} ('{relation}')"
            + (", given its flow, which is not covered either." if own.guarantee == "given-flow" else ".")
        )
    if claim.guarantee == "none":
        return f"{name}: no privacy. This left the sites without any protection: {'; '.join(claim.unprotected)}."
    holds = "would be, had the noise not been seeded," if noise == "seeded" else "is"
    if claim.guarantee == "end-to-end":
        whom = "the server and all that it shares with" if claim.against == "server" else _recipients(claim)
        return (
            f"{name}: everything computed from training records that leaves a site is accounted, or declared public. "
            f"For two data sets of a site that differ by '{relation}', it {holds} {_pair(claim.epsilon, claim.delta)}-"
            f"differentially private, over everything that the method does, against {whom}. "
            f"(The same events under add-or-remove: epsilon {format_epsilon(claim.epsilon_add_remove)}.)"
            + "".join(f" This rests on a declaration: {each}." for each in claim.declared)
            + _on_the_shuffle(claim)
            + _on_the_flow(claim)
        )
    conditional = _pair(claim.epsilon_if_flow_were_fixed, claim.delta)
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
    fixed = "the flow been fixed without these records"
    if noise == "seeded":
        fixed, truth = f"{fixed} and the noise not been seeded", f"{truth}, and the noise was seeded"
    return (
        f"{name}: NO end-to-end guarantee. {story} The released records alone would be "
        f"{conditional}-differentially private ('{relation}') had {fixed}; {truth}."
        + (f" That is against {_recipients(claim)}." if claim.against == "recipients" else "")
        + _on_the_shuffle(claim)
        + _on_the_flow(claim)
    )


_RECIPIENTS = (
    "those alone who see sums over sites: each site adds a share of their noise, and the aggregator, which sees more, "
    "is trusted, as is every site not to reveal its own share"
)


def _recipients(claim: Claim) -> str:
    """Return whom a claim on shared noise holds against, on how many sites it rests, and what the aggregator sees."""
    return (
        f"{_RECIPIENTS}. It rests on {claim.sharers} sites that really add their share of the noise; against the "
        f"aggregator, the site's own message alone has epsilon {format_epsilon(claim.epsilon_of_own_message)}"
    )


def _on_the_shuffle(claim: Claim) -> str:
    """Return what a claim counts on where a release's messages are shuffled, and what each shows by itself."""
    if claim.local_epsilon is None:
        return ""
    local = f"What one unit sends in a release has epsilon {format_epsilon(claim.local_epsilon)} by itself"
    if not claim.shuffled_units:
        return f" {local}, which is counted in full: the claim rests on no shuffle."
    return (
        f" {local}. The claim is lower since the site, which is trusted with its own records, sends the release whole "
        f"and in a secret, uniformly random order, where at least {claim.shuffled_units} units went through the same "
        "randomizer. Against whoever learns that order, or sees messages before the site has shuffled them, a unit has "
        "the larger figure."
    )


def _on_the_flow(claim: Claim) -> str:
    """Return what a claim takes a release's flow to be made of, where noised events of the plan made it, or nothing."""
    if not claim.flow_made_of:
        return ""
    return (
        f" It takes the flow to be made of what these events of the method released, {', '.join(claim.flow_made_of)}, "
        "and of nothing else from these records. A site checks that it gave these out before, and that the part of a "
        "flow which moments make is the one that the sums give; that the server put nothing else of these records into "
        "the sums, or into blocks that were trained, is the server's word."
    )


def _pair(epsilon: float | None, delta: float) -> str:
    return f"({format_epsilon(epsilon)}, {format_delta(delta)})"


def statement_on_test_units(
    claim: Claim | None,
    scope: Scope,
    *,
    noise: str,
    deployed: bool = False,
    tested: Sequence[str] | None = None,
    is_known: bool = True,
) -> str:
    """Return what may be claimed for the units that classifiers are tested on; they are no training units.

    Args:
        claim: on the evaluation of one method, of the site where it costs the most; None where no method reserved one.
        scope: of the study's claims.
        noise: where it comes from.
        deployed: whether the sites are real ones.
        tested: names of the methods whose classifiers were tested; None for all of the study.
        is_known: whether it is known that no other was tested.
    """
    apart = (
        f"No test {scope.unit} is a training {scope.unit}, so this is apart from every claim on training {scope.unit}s"
    )
    if claim is None or (tested == [] and is_known):
        reserved = " What was reserved for that counts as spent all the same." if claim is not None else ""
        return f"Nothing was given out about test {scope.unit}s.{reserved} {apart}."
    more = (
        ""
        if is_known
        else " What else was given out about them is not known here; what was reserved for that counts as spent."
    )
    if tested == []:
        return f"Test {scope.unit}s: whether anything was given out about them is not known here.{more} {apart}."
    if claim.epsilon is None:
        allowed = (
            "as their policies allow"
            if deployed
            else "as only a simulation may let them, or a site whose policy says so"
        )
        return (
            f"Test {scope.unit}s: {' and '.join(claim.unprotected)} left the sites, {allowed}; no epsilon covers them."
            f"{more} {apart}."
        )
    holds = "would be, had the noise not been seeded," if noise == "seeded" else "is"
    classifiers = "each method's classifier" if tested is None else f"the classifier of {' and '.join(tested)}"
    return (
        f"Test {scope.unit}s: noised confusion counts and score histograms of {classifiers}, when it was final, were "
        f"given out once. For two sets of a site's test {scope.unit}s that differ by "
        f"'{relation_of(scope.unit, 'covered')}', that {holds} {_pair(claim.epsilon, claim.delta)}-"
        f"differentially private for each method; what all of them add up to stands in privacy.json.{more} {apart}."
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


RESUMED_AT_SITES = (
    "The run was interrupted and went on. What sites had answered by then was asked of them again and came from their "
    "stored answers, so that it was not spent twice; what a crash at a site lost was paid for again out of its plan's "
    "retry reserve, and is in these accounts."
)


def statement_of_study(
    study: StudyConfig,
    scope: Scope,
    methods: Mapping[str, str],
    *,
    resumed: bool,
    test_units: str = "",
    summed: Sequence[str] = (),
    sampled: bool = True,
    federation: str = "",
    sites: int = 0,
    away: Sequence[str] = (),
    stopped: bool = False,
    together: Together | None = None,
) -> str:
    """Return the paragraph on a whole study, that a data protection officer can paste.

    Args:
        methods: statement of each.
        resumed: whether the run was interrupted and went on.
        test_units: statement on them.
        summed: names of the methods whose sites add a share of some noise alone.
        sampled: whether any method draws samples of records.
        federation: name of the federation of real sites; empty in a simulation.
        sites: number of real sites that described themselves.
        away: names of sites that refused something, or did not answer in some phase.
        stopped: whether the run ended early, or goes on.
        together: what all methods of a run over real sites compose to, at the site where that is the most.
    """
    what = (
        f"This study is one over {sites} of {study.sites.count} sites of the federation '{federation}'."
        if federation
        else f"This is a simulation of {study.sites.count} sites."
    )
    if away:
        what += f" Not all took part in all of it: {', '.join(away)} refused something, or did not answer."
    if stopped:
        what += " It did not come to its end."
    shares = (
        f" In {' and '.join(summed)} the sites add a share of some noise each, so that what holds, holds against "
        f"{_RECIPIENTS}."
    )
    source = (
        "The privacy noise of this run was derived from a seed, so that the run can be repeated. Whoever knows the "
        "seed can remove the noise: nothing released here is protected."
        if study.noise == "seeded"
        else "The privacy noise came from the operating system's entropy at each site."
    )
    reserve = study.budget.retry_reserve
    retries = (
        f"Of every budget a share of {reserve:g} is set aside for results that a crash loses; it is claimed whether it "
        "is used or not."
    )
    return " ".join(
        [
            f"{what} The privacy unit is one {scope.unit} of a site's "
            f"training data; the neighbouring relation is '{scope.relation}'. Each {scope.unit} is protected against "
            "the server and all that it shares with, since every site adds its own noise; the site itself is trusted."
            + (shares if summed else ""),
            source,
            *([retries] if reserve else []),
            *([RESUMED_AT_SITES if federation else RESUMED] if resumed else []),
            *methods.values(),
            _on_all_methods(together, stopped=stopped),
            *([test_units] if test_units else []),
            "Assumptions:",
            *assumptions(scope, sampled=sampled),
            "Not covered:",
            *not_covered(scope, deployed=bool(federation)),
        ]
    )


def _on_all_methods(together: Together | None, *, stopped: bool) -> str:
    """Return what all methods of a study compose to, in words; of a simulation, that they were run apart.

    Args:
        stopped: whether not all of it may have been carried out.
    """
    if together is None:
        return (
            "Each statement holds if only that method had been run; all methods of this study together compose to what "
            "privacy.json says."
        )
    carried_out = "All methods of this run were carried out on the same records: together"
    if stopped:
        carried_out = "All that was reserved for this run is of the same records, and counts as spent: together"
    left = "may have left" if stopped else "left"
    ledger = "(each site's ledger adds earlier runs too)"
    if together.epsilon is None or together.delta is None:
        return (
            f"{carried_out} there is no bound {ledger}, since this {left} the sites unprotected: "
            f"{'; '.join(together.unprotected)}."
        )
    return f"{carried_out} epsilon {format_epsilon(together.epsilon)} at delta {format_delta(together.delta)} {ledger}."

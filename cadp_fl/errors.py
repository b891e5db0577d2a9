"""What can go wrong, as one tree.

    CadpError                 every error of this library; exit status 1
    +-- InputError            the user's input is wrong; exit status 2
    |   +-- ConfigError       a study config
    |   +-- DataError         a data source, or what it holds
    +-- AgentError            a site's agent does not answer
    +-- PrivacyError          a privacy rule would be broken, so nothing was computed
    |   +-- BudgetError       the request costs more than the budget allows
    |   +-- LedgerError       the ledger is missing, locked, full, damaged or older than it was
    |   +-- ConditionsError   what a plan's claim rests on has changed since it was reserved
    |   +-- FlowOriginError   a release's flow is not made of what its plan says
    |   +-- PolicyError       the site's policy does not allow the request
    |       +-- TotalBudgetError, MechanismError, UnprotectedModelError, UnitError, CohortError, SeededNoiseError,
    |           EvaluationError, ReviewError, AggregatorError, EditedPolicyError, MadeFlowError, LittleNoiseError,
    |           ShuffleError
    +-- ExchangeError         what a site or a server sent does not fit what was asked for
    +-- TrainingError         training cannot go on
    |   +-- MemoryLimitError  not even one record fits into the device's memory
    +-- FederationError       too few sites are left, or they do not fit together
    +-- FlowerError           Flower did not do what it was asked, or a server app died
        +-- LateStartError    the simulation engine gave up its start

Every message states the rule, the value found, and the way out. An error that crosses from a site to
the server does so as its `code` alone: the text may hold values that records had a part in.
"""

__all__ = [
    "AgentError",
    "AggregatorError",
    "BudgetError",
    "CadpError",
    "CohortError",
    "ConditionsError",
    "ConfigError",
    "DataError",
    "EditedPolicyError",
    "EvaluationError",
    "ExchangeError",
    "FederationError",
    "FlowOriginError",
    "FlowerError",
    "InputError",
    "LateStartError",
    "LedgerError",
    "LittleNoiseError",
    "MadeFlowError",
    "MechanismError",
    "MemoryLimitError",
    "PolicyError",
    "PrivacyError",
    "ReviewError",
    "ShuffleError",
    "SeededNoiseError",
    "TotalBudgetError",
    "TrainingError",
    "UnitError",
    "UnprotectedModelError",
]


class CadpError(Exception):
    """Any failure that this library explains in one sentence."""

    code = 100
    meaning = "the site failed; its own log has the details"
    exit_status = 1

    @staticmethod
    def named(code: int, text: str = "") -> "CadpError":
        """Return the error that a site named by its code; without a text it says what the code means."""
        pending: list[type[CadpError]] = [CadpError]
        while pending:
            kind = pending.pop()
            if kind.code == code:
                return kind(text or f"{kind.meaning} (code {code})")
            pending.extend(kind.__subclasses__())
        return CadpError(text or f"{CadpError.meaning} (code {code})")


class AgentError(CadpError):
    """A site's agent does not answer. Nothing was asked of it, or what it answers will be the same when asked again."""

    code = 110
    meaning = "the site's agent does not answer; its steward starts it again (cadp-fl site serve)"


class InputError(CadpError):
    """The user's input is wrong."""

    code = 200
    meaning = "the request is malformed"
    exit_status = 2


class ConfigError(InputError):
    """A study config is wrong."""

    code = 201
    meaning = "the study config does not fit this site"


class DataError(InputError):
    """A data source cannot be read, or its contents break the schema."""

    code = 202
    meaning = "the site cannot read its data"


class PrivacyError(CadpError):
    """A privacy rule would be broken. Nothing was computed."""

    code = 300
    meaning = "the request breaks a privacy rule of the site"


class BudgetError(PrivacyError):
    """The request costs more than the budget allows. Nothing was computed."""

    code = 301
    meaning = "the request is beyond what the site reserved or allows"


class LedgerError(PrivacyError):
    """The ledger is missing, locked, full, damaged or older than it was. Nothing was computed."""

    code = 302
    meaning = "the site's ledger cannot be written to, or cannot be trusted"


class ConditionsError(PrivacyError):
    """What a plan's claim rests on has changed since it was reserved. Nothing was computed."""

    code = 303
    meaning = "noise, classes or attributes of the site are not what they were when the plan was reserved"


class FlowOriginError(PrivacyError):
    """A release's flow is not made of what its plan says that it is. Nothing was computed."""

    code = 304
    meaning = "the flow of a release is not made of what its plan says, or not of what the site gave out"


class PolicyError(PrivacyError):
    """The site's policy does not allow the request. Nothing was computed."""

    code = 310
    meaning = "the site's policy does not allow the request"


class TotalBudgetError(PolicyError):
    """The plan would cost more than the policy's total leaves."""

    code = 311
    meaning = "the plan costs more than the total budget of the site's policy leaves"


class MechanismError(PolicyError):
    """The policy does not allow the mechanism."""

    code = 312
    meaning = "the site's policy does not allow the mechanism"


class UnprotectedModelError(PolicyError):
    """The policy lets nothing leave that was computed without differential privacy."""

    code = 313
    meaning = "the site's policy lets nothing leave that was computed without differential privacy"


class UnitError(PolicyError):
    """The policy protects another privacy unit, or other labels."""

    code = 314
    meaning = "the site's policy protects another privacy unit, or treats labels otherwise"


class CohortError(PolicyError):
    """The policy asks for more records, by declared or noised counts."""

    code = 315
    meaning = "the site declares fewer records than its policy asks for"


class SeededNoiseError(PolicyError):
    """The policy allows no noise that can be derived again."""

    code = 316
    meaning = "the site's policy allows no seeded noise"


class EvaluationError(PolicyError):
    """The policy allows no such evaluation, or not as many."""

    code = 317
    meaning = "the site's policy allows no such evaluation, or not as many"


class ReviewError(PolicyError):
    """A steward has not approved the release, or has denied it."""

    code = 318
    meaning = "the site's steward has not approved the release"


class AggregatorError(PolicyError):
    """The policy trusts no aggregator, so that a site adds all of its noise itself."""

    code = 319
    meaning = "the site's policy trusts no aggregator with values that have a share of the noise alone"


class EditedPolicyError(PolicyError):
    """The policy was edited since the agent read it, and its steward has not said that it holds."""

    code = 320
    meaning = "the site's policy was edited, and its steward has not put it into force (cadp-fl site reload)"


class MadeFlowError(PolicyError):
    """The policy takes no server's word for what a flow is made of."""

    code = 321
    meaning = "the site's policy lets no release rest on a flow that a server made (made_flows)"


class LittleNoiseError(PolicyError):
    """Noise is below the floor of the policy, whatever epsilon it adds up to."""

    code = 322
    meaning = "an event has less noise than the site's policy asks of every noise (least_noise)"


class ShuffleError(PolicyError):
    """A plan counts on a shuffle that would not hide a unit as it says, or on it alone."""

    code = 323
    meaning = "a plan rests on a shuffle whose conditions do not hold at the site, or shows too much without it"


class ExchangeError(CadpError):
    """What arrived does not have the names, shapes or values that were asked for."""

    code = 400
    meaning = "what was sent does not have the names, shapes or values that were asked for"


class TrainingError(CadpError):
    """Training cannot go on."""

    code = 500
    meaning = "training cannot go on"


class MemoryLimitError(TrainingError):
    """Not even one record fits into the device's memory."""

    code = 501
    meaning = "the site ran out of memory"


class FederationError(CadpError):
    """Too few sites are left, or they do not fit together."""

    code = 600
    meaning = "the sites do not fit together"


class FlowerError(CadpError):
    """Flower's command line did not do what it was asked, or a server app died."""

    code = 700
    meaning = "Flower did not do what it was asked, or the server app died"


class LateStartError(FlowerError):
    """The simulation engine gave up its start before any site was asked, because the machine was too busy."""

    code = 701
    meaning = "the simulation engine did not start in time"

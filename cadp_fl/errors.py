"""What can go wrong, as one tree.

    CadpError                 every error of this library; exit status 1
    +-- InputError            the user's input is wrong; exit status 2
    |   +-- ConfigError       a study config
    |   +-- DataError         a data source, or what it holds
    +-- PrivacyError          a privacy rule would be broken, so nothing was computed
    |   +-- BudgetError       the request costs more than the budget allows
    +-- ExchangeError         what a site or a server sent does not fit what was asked for
    +-- TrainingError         training cannot go on
    |   +-- MemoryLimitError  not even one record fits into the device's memory
    +-- FederationError       too few sites are left, or they do not fit together

Every message states the rule, the value found, and the way out. An error that crosses from a site to
the server does so as its `code` alone: the text may hold values that records had a part in.
"""

__all__ = [
    "BudgetError",
    "CadpError",
    "ConfigError",
    "DataError",
    "ExchangeError",
    "FederationError",
    "InputError",
    "MemoryLimitError",
    "PrivacyError",
    "TrainingError",
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

"""Who is tested on at a real site, and so never trained on: a rule that its ledger keeps, and that never changes."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cadp_fl.config.settings import Fraction, Settings

__all__ = ["SplitRule"]

_GIVEN = {"source": (), "hash": ("ids", "fraction", "salt"), "none": (), "rehearsal": ("sha256",)}
_HEX = r"^[0-9a-f]{%d}$"


class SplitRule(Settings):
    """On which side everyone is, training or test, by who they are and by nothing else."""

    rule: Literal["source", "hash", "none", "rehearsal"] = Field(
        description="source: the source's own test split; hash: by a hash of each id; none: nobody is tested on; "
        "rehearsal: the public records of a rehearsal, as they were dealt"
    )
    ids: Literal["patients", "ids"] | None = Field(None, description="of whom or what the hash is taken")
    fraction: Fraction | None = Field(None, description="share of the ids that is tested on, on average")
    salt: Annotated[str, Field(pattern=_HEX % 32)] | None = Field(None, description="random; hashed with each id")
    sha256: Annotated[str, Field(pattern=_HEX % 64)] | None = Field(None, description="of a rehearsal's records")

    @model_validator(mode="after")
    def _is_whole(self) -> "SplitRule":
        found = tuple(key for key in ("ids", "fraction", "salt", "sha256") if getattr(self, key) is not None)
        if found != _GIVEN[self.rule]:
            raise ValueError(f"the rule '{self.rule}' has the keys {_GIVEN[self.rule]}. Found {found}")
        return self

    @property
    def in_words(self) -> str:
        """The rule as a sentence."""
        who = "patients" if self.ids == "patients" else "records"
        return {
            "source": "The source's own test split is tested on.",
            "hash": f"A share of {self.fraction} of the {who} is tested on, by a hash of their ids.",
            "none": "Nobody is tested on: no evaluation is answered.",
            "rehearsal": "What the rehearsal deals as test records is tested on.",
        }[self.rule]

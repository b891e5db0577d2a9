"""The server's side of a federation: whom it can ask, who did not answer, what crossed.

Methods and the workflow see this protocol alone; the Flower adapter implements it over a Grid.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from cadp_fl.errors import CadpError, ExchangeError, FederationError
from cadp_fl.federated.recorder import Recorder
from cadp_fl.site.protocol import Reply, Request

__all__ = ["Federation", "Missing", "Roster", "Traffic", "Transport"]


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missing:
    """A site that did not answer, or not usefully."""

    site: str
    phase: str
    reason: str


@dataclass
class Traffic:
    """Bytes of tensors that crossed, as a site sees them: `up` left it, `down` reached it."""

    up: int = 0
    down: int = 0


Roster = Mapping[str, int]
"""Node id by site name."""

Answer = Reply | CadpError
"""What came back from a node: a reply, or the error that it named."""


class Transport(Protocol):
    """Carries requests to nodes. Nodes are numbered; only the federation knows their names."""

    def nodes(self, expected: int) -> list[int]:
        """Return the ids of the nodes, once `expected` are there or waiting is in vain."""
        ...

    def exchange(
        self, requests: Mapping[int, Request], *, group: str, on_answer: Callable[[int, Answer], None]
    ) -> frozenset[int]:
        """Send a request to each node, call back with what comes in time, and return the nodes that could not be asked.

        A node has one request at a time. One that is still at work on an earlier request gets the new one when it has
        answered the old one, whose answer is dropped; an exchange does not wait for that.
        """
        ...


@dataclass
class Federation:
    """Asks named sites, checks who answered, and keeps going above a quorum.

    Attributes:
        transport: carries requests.
        needed: number of sites below which a phase stops the run.
        recorder: is told of every answer.
        roster: node id by site; frozen once the sites have described themselves.
        missing: who did not answer, and why; one entry a site and phase.
        traffic: bytes by site.
        refused: site and phase of every answer that was an error, which says that nothing was done.
        run: id of the run, under which sites keep its plans, and what is asked in a round, which they answer once.
    """

    transport: Transport
    needed: int
    recorder: Recorder
    roster: Roster = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    refused: set[tuple[str, str]] = field(default_factory=set)
    run: str = ""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of all sites, in order."""
        return tuple(sorted(self.roster))

    def ask(
        self,
        request: Request | Mapping[str, Request],
        *,
        phase: str,
        round: int = 1,
        of: int = 1,
        check: Callable[[str, Reply], None] = lambda site, reply: None,
    ) -> dict[str, Reply]:
        """Send a request to every site, and return the replies that pass, by site in order of name.

        Args:
            request: what to ask all; or what to ask some, by site, for which no quorum is needed.
            phase: the phase of the run, for progress and for naming who is missing.
            round: number of the round in its phase, from 1.
            of: number of rounds in the phase.
            check: raises a `CadpError` where a reply does not fit.

        Raises:
            FederationError: all were asked, and fewer sites than needed answered.
        """
        asked = dict(request) if isinstance(request, Mapping) else dict.fromkeys(self.sites, request)
        asked = {site: replace(each, run=self.run, id=f"{self.run}/{phase}/{round}") for site, each in asked.items()}
        names = {self.roster[site]: site for site in asked}
        answers: dict[str, Answer] = {}

        def on_answer(node: int, answer: Answer) -> None:
            site = names[node]
            answers[site] = self._checked(site, answer, check)
            self.recorder.answer(phase, round, of, site, answers[site])

        by_node = {self.roster[site]: each for site, each in asked.items()}
        busy = self.transport.exchange(by_node, group=f"{phase}-{round}", on_answer=on_answer)
        replies: dict[str, Reply] = {}
        for site in sorted(asked):
            answer, traffic = answers.get(site), self.traffic.setdefault(site, Traffic())
            if self.roster[site] not in busy:
                traffic.down += sum(array.nbytes for array in asked[site].arrays.values())
            if isinstance(answer, Reply):
                traffic.up += sum(array.nbytes for array in answer.arrays.values())
                replies[site] = answer
            elif answer is not None:
                self.refused.add((site, phase))
                self._note_missing(site, phase, str(answer))
            elif self.roster[site] in busy:
                self._note_missing(site, phase, "was still at work on an earlier request")
            else:
                self._note_missing(site, phase, "did not answer in time")
        if not isinstance(request, Mapping):
            self.require(phase, len(replies))
        return replies

    def require(self, phase: str, answered: int, *, least: int = 0) -> None:
        """Check that as many sites answered in a phase as are needed.

        Args:
            least: number of sites that the phase needs, whatever the study's quorum.

        Raises:
            FederationError: fewer did.
        """
        if answered < (needed := max(self.needed, least)):
            sites_by_reason: dict[str, list[str]] = {}
            for gap in (gap for gap in self.missing if gap.phase == phase):
                sites_by_reason.setdefault(gap.reason, []).append(gap.site)
            lost = " ".join(f"{', '.join(sites)}: {reason}" for reason, sites in sites_by_reason.items())
            raise FederationError(
                f"Phase '{phase}' needs {needed} sites (sites.quorum). {answered} of {len(self.roster)} answered. "
                f"{lost}"
            )

    def _checked(self, site: str, answer: Answer, check: Callable[[str, Reply], None]) -> Answer:
        if isinstance(answer, CadpError):
            return answer
        try:
            check(site, answer)
        except CadpError as error:
            return error
        except Exception as error:  # a reply is untrusted: whatever it breaks, it must not break the run
            _log.exception("The reply of %s cannot be read", site)
            return ExchangeError(f"A reply has the form that was asked for. This one broke its reader: {error!r:.200}.")
        return answer

    def _note_missing(self, site: str, phase: str, reason: str) -> None:
        if not any(gap.site == site and gap.phase == phase for gap in self.missing):
            self.missing.append(Missing(site, phase, reason))

"""The Flower side of the server: a `Transport` over any `Grid`, and the workflow as one object."""

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid

from cadp_fl.config import StudyConfig
from cadp_fl.errors import CadpError, ExchangeError
from cadp_fl.federated.federation import Answer, Node
from cadp_fl.federated.flower_client import decode_reply, encode_request
from cadp_fl.federated.recorder import Watcher, text_to
from cadp_fl.federated.roll_call import call_roll
from cadp_fl.federated.workflow import conduct
from cadp_fl.outputs import write_durably
from cadp_fl.site.protocol import ACTIONS, Request

__all__ = ["ROLL_CALL", "GridTransport", "Workflow", "describe_all"]

ROLL_CALL = "roll-call.json"
"""File of what every node says of its site."""

ROLL_CALL_SECONDS = 60.0

_log = logging.getLogger(__name__)

JOIN_SECONDS = 120.0
"""For all real sites to be connected, from the start of a run."""
DEPLOYED_PAUSE_SECONDS = 0.5

NODE_UNAVAILABLE, CLIENT_APP_CRASHED = 5, 8
"""Flower's numbers (`ErrorCode`, which is not public) of the errors that say who died."""
GONE = "its SuperNode is gone or offline; its steward starts it again (cadp-fl site connect)"


class GridTransport:
    """Carries requests over a Flower `Grid`, and passes answers on as they come.

    Args:
        grid: any Grid.
        timeout: seconds after which a node counts as late.
        join_timeout: seconds to wait for the expected number of nodes.
        pause: seconds between two looks for answers.
        named: whether nodes have the names that they were registered under, as real ones do.
    """

    def __init__(
        self, grid: Grid, *, timeout: float, join_timeout: float = 60.0, pause: float = 0.05, named: bool = False
    ) -> None:
        self._grid = grid
        self._named = named
        self._timeout = timeout
        self._join_timeout = join_timeout
        self._pause = pause
        self._unanswered: dict[int, str] = {}
        """Id of the message that a node did not answer in time, by node."""

    def nodes(self, expected: int, names: Collection[str] = ()) -> list[Node]:
        """Return the nodes, once `expected` are there or the join timeout has passed.

        Args:
            expected: number of nodes.
            names: of those that count; none where nodes have no names.
        """
        deadline = time.monotonic() + self._join_timeout
        while True:
            nodes = self._connected()
            counted = {node.name for node in nodes} & set(names) if names else nodes
            if len(counted) >= expected or time.monotonic() > deadline:
                return nodes
            time.sleep(self._pause)

    def _connected(self) -> list[Node]:
        if not self._named:
            return [Node(node) for node in sorted(self._grid.get_node_ids())]
        nodes = [Node(int(node.node_id), str(node.name)) for node in self._grid.get_nodes()]
        return sorted(nodes, key=lambda node: node.id)

    def exchange(
        self, requests: Mapping[int, Request], *, group: str, on_answer: Callable[[int, Answer], None]
    ) -> frozenset[int]:
        """Send a request to each node, call back with what comes in time, and return the nodes that could not be asked.

        A node has one request at a time: two would race for its state. One that is still at work on an earlier request
        gets the new one when it has answered the old one, whose answer is dropped; an exchange does not wait for that.
        """
        late = {node for node in requests if node in self._unanswered}
        busy = late - self._free(late)
        waiting = self._push({node: each for node, each in requests.items() if node not in busy}, group, on_answer)
        deadline = time.monotonic() + self._timeout
        while waiting and time.monotonic() < deadline:
            for reply in self._pull(waiting.values()):
                asked = reply.metadata.reply_to_message_id
                for node in [node for node, message in waiting.items() if message == asked]:  # none: it came before
                    del waiting[node]
                    on_answer(node, _answer(reply))
            rejoined = {node: requests[node] for node in self._free(busy)}
            busy -= set(rejoined)
            waiting |= self._push(rejoined, group, on_answer)
            if waiting:
                time.sleep(self._pause)
        self._unanswered |= waiting
        return frozenset(busy)

    def _push(
        self, requests: Mapping[int, Request], group: str, on_answer: Callable[[int, Answer], None]
    ) -> dict[int, str]:
        """Send requests, and return the id of each message by node; one that cannot be sent is answered at once."""
        # A list, since a Grid may walk through the messages twice.
        messages = [
            Message(encode_request(request), dst_node_id=node, message_type=ACTIONS[request.action], group_id=group)
            for node, request in requests.items()
        ]
        # Ids come back in the order of the messages; an error reply need not name the node that it stands for.
        sent = dict(zip(requests, self._grid.push_messages(messages), strict=True)) if messages else {}
        for node in [node for node, message in sent.items() if not message]:
            del sent[node]
            on_answer(node, CadpError(GONE))
        return sent

    def _pull(self, message_ids: Iterable[str]) -> list[Message]:
        pending = list(message_ids)
        return list(self._grid.pull_messages(pending)) if pending else []

    def _free(self, nodes: Collection[int]) -> set[int]:
        """Drop late answers that have come by now, and return the nodes that gave them."""
        late = {self._unanswered[node]: node for node in nodes}
        freed = {late[reply.metadata.reply_to_message_id] for reply in self._pull(late)}
        for node in freed:
            del self._unanswered[node]
        return freed


def _answer(reply: Message) -> Answer:
    if reply.has_error():
        _log.error("Flower reports error %s: %s", reply.error.code, reply.error.reason)
        return CadpError(_failure(reply.error.code, reply.error.reason or ""))
    try:
        return decode_reply(reply.content)
    except ExchangeError as error:
        return error


def _failure(code: int, reason: str) -> str:
    """Return a sentence on a Flower error; its own reason may hold values that records had a part in."""
    if code == NODE_UNAVAILABLE:
        return GONE
    if code == CLIENT_APP_CRASHED:
        return (
            "its client process was killed, as it is when memory runs out, or stopped answering; Flower's log says why"
        )
    if "OutOfDisk" in reason or "No space left on device" in reason:
        return "the disk of the site's temporary files is full; make room there, or set TMPDIR to another folder"
    if "OutOfMemory" in reason or "low on memory" in reason:
        return "the site's process was killed for memory; let fewer sites compute at once (sites.cpus_per_client)"
    if "ActorDied" in reason or "ActorUnavailable" in reason or "WorkerCrashed" in reason:
        return (
            "the site's process died, as it does when memory or the disk of temporary files runs out; let fewer sites "
            "compute at once (sites.cpus_per_client), or make room in TMPDIR"
        )
    return f"the site's process failed (Flower error {code}; Flower's log says why)"


class Workflow:
    """A whole study as one object that drives any Flower `Grid`.

    Args:
        study: the config.
        folder: the run folder; made where it is missing.
        watch: is called with each step of the run; by default every round is printed as a line of text.
        resume: go on with the run in the folder, from its last finished phase.
        federation: name of the federation of real sites that the grid's nodes are; empty in a simulation.
    """

    def __init__(
        self,
        study: StudyConfig,
        folder: Path,
        *,
        watch: Watcher | None = None,
        resume: bool = False,
        federation: str = "",
    ) -> None:
        self._study = study
        self._folder = folder
        self._watch = watch or text_to()
        self._resume = resume
        self._federation = federation

    def run(self, grid: Grid, context: Context) -> str:
        """Conduct the study, and return its status: complete or incomplete.

        Raises:
            CadpError: the study cannot go on; what is known by then is in the summary.
        """
        timeout = self._study.sites.timeout_seconds
        transport = GridTransport(grid, timeout=timeout)
        if self._federation:
            transport = GridTransport(
                grid, timeout=timeout, join_timeout=JOIN_SECONDS, pause=DEPLOYED_PAUSE_SECONDS, named=True
            )
        return conduct(
            self._study,
            transport,
            self._folder,
            watch=self._watch,
            resume=self._resume,
            federation=self._federation,
        )


def describe_all(grid: Grid, folder: Path) -> None:
    """Ask every connected node what its site is, and write what came into a folder. Nothing is spent."""
    present = call_roll(GridTransport(grid, timeout=ROLL_CALL_SECONDS, pause=DEPLOYED_PAUSE_SECONDS, named=True))
    write_durably(folder / ROLL_CALL, json.dumps(present, indent=2).encode())

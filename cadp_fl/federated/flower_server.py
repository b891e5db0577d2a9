"""The Flower side of the server: a `Transport` over any `Grid`, and the workflow as one object."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid

from cadp_fl.config import StudyConfig
from cadp_fl.errors import CadpError, ExchangeError
from cadp_fl.federated.federation import Answer
from cadp_fl.federated.flower_client import decode_reply, encode_request
from cadp_fl.federated.recorder import Watcher
from cadp_fl.federated.workflow import conduct
from cadp_fl.site.protocol import ACTIONS, Request

__all__ = ["GridTransport", "Workflow"]

_log = logging.getLogger(__name__)


class GridTransport:
    """Carries requests over a Flower `Grid`, and passes answers on as they come.

    Args:
        grid: any Grid.
        timeout: seconds after which a node counts as late.
        join_timeout: seconds to wait for the expected number of nodes.
        pause: seconds between two looks for answers.
    """

    def __init__(self, grid: Grid, *, timeout: float, join_timeout: float = 60.0, pause: float = 0.05) -> None:
        self._grid = grid
        self._timeout = timeout
        self._join_timeout = join_timeout
        self._pause = pause

    def nodes(self, expected: int) -> list[int]:
        """Return the ids of the nodes, once `expected` are there or the join timeout has passed."""
        deadline = time.monotonic() + self._join_timeout
        while True:
            nodes = sorted(self._grid.get_node_ids())
            if len(nodes) >= expected or time.monotonic() > deadline:
                return nodes
            time.sleep(self._pause)

    def exchange(
        self, requests: Mapping[int, Request], *, group: str, on_answer: Callable[[int, Answer], None]
    ) -> dict[int, Answer]:
        """Send a request to each node, and return what came back in time, by node."""
        # A list, since a Grid may walk through the messages twice.
        messages = [
            Message(encode_request(request), dst_node_id=node, message_type=ACTIONS[request.action], group_id=group)
            for node, request in requests.items()
        ]
        # Ids come back in the order of the messages; an error reply need not name the node that it stands for.
        node_of = dict(zip(self._grid.push_messages(messages), requests, strict=True))
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + self._timeout
        while len(answers) < len(requests) and time.monotonic() < deadline:
            pending = [message_id for message_id, node in node_of.items() if node not in answers]
            for reply in self._grid.pull_messages(pending):
                node = node_of[reply.metadata.reply_to_message_id]
                answers[node] = _answer(reply)
                on_answer(node, answers[node])
            time.sleep(self._pause)
        return answers


def _answer(reply: Message) -> Answer:
    if reply.has_error():
        _log.error("Flower reports error %s: %s", reply.error.code, reply.error.reason)
        return CadpError(f"the site's process failed (Flower error {reply.error.code}; Flower's log says why)")
    try:
        return decode_reply(reply.content)
    except ExchangeError as error:
        return error


class Workflow:
    """A whole study as one object that drives any Flower `Grid`.

    Args:
        study: the config.
        folder: the run folder; made where it is missing.
        watch: is called with each step of the run.
    """

    def __init__(self, study: StudyConfig, folder: Path, *, watch: Watcher) -> None:
        self._study = study
        self._folder = folder
        self._watch = watch

    def run(self, grid: Grid, context: Context) -> str:
        """Conduct the study, and return its status: complete or incomplete.

        Raises:
            CadpError: the study cannot go on; what is known by then is in the summary.
        """
        transport = GridTransport(grid, timeout=self._study.sites.timeout_seconds)
        return conduct(self._study, transport, self._folder, watch=self._watch)

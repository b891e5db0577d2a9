"""A Flower Grid in memory: it calls a real ClientApp at once, in this process."""

import copy
import itertools
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

CODES = {"crash": 1, "gone": 5, "killed": 8}
"""Flower's numbers of errors."""


class LocalGrid(Grid):
    """Nodes numbered from 10, one a partition. A message is copied, as a wire would.

    Args:
        names: that the nodes are registered under, in a deployment.
    """

    def __init__(self, app: ClientApp, nodes: int, run_config: dict[str, Any], names: Sequence[str] = ()) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0
        self.app = app
        self.sent: list[Message] = []
        self.replies: list[Message] = []
        self.fail: dict[tuple[int, str], str] = {}
        """Nodes that fail, by (node, message type): `silent` gives no answer, `crash` a Flower error, `gone` and
        `killed` the errors of a node and of a client app that are, and `late-once` answers one message only when others
        are sent."""
        self._held: dict[str, Message] = {}
        self.names = list(names)
        self.offline: set[int] = set()
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self.contexts = {
            10 + index: Context(
                run_id=1,
                node_id=10 + index,
                node_config={"partition-id": index, "num-partitions": nodes},
                state=RecordDict(),
                run_config=run_config,
            )
            for index in range(nodes)
        }

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        self._waiting |= self._held
        self._held = {}
        for message in messages:
            message_id = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = message_id
            ids.append(message_id)
            self.sent.append(message)
            node = message.metadata.dst_node_id
            failure = self.fail.get((node, message.metadata.message_type))
            if failure == "silent":
                continue
            if failure in CODES:
                reply = Message(Error(code=CODES[failure], reason="secret 42"), reply_to=message)
            else:
                reply = self.app(copy.deepcopy(message), self.contexts[node])
            self.replies.append(reply)
            if failure == "late-once":
                del self.fail[(node, message.metadata.message_type)]
                self._held[message_id] = copy.deepcopy(reply)
            else:
                self._waiting[message_id] = copy.deepcopy(reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._waiting.pop(message_id) for message_id in message_ids if message_id in self._waiting]

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *arguments: Any, **named: Any) -> Any: ...

    def get_nodes(self) -> Any:
        return [
            SimpleNamespace(node_id=node, name=name)
            for node, name in zip(self.contexts, self.names, strict=True)
            if node not in self.offline
        ]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

"""A roll call: every connected node is asked what its site is, and nothing is spent.

It shows who would answer a study, by the whole way that one takes: SuperLink, SuperNode, client code, agent.
"""

from typing import Any

from pydantic import ValidationError

import cadp_fl
from cadp_fl.errors import CadpError
from cadp_fl.federated.federation import Answer, Transport
from cadp_fl.site.description import Description
from cadp_fl.site.protocol import Reply, Request

__all__ = ["call_roll"]


def call_roll(transport: Transport) -> dict[str, Any]:
    """Ask the nodes that are connected what they are, and return what came, as JSON values."""
    nodes = transport.nodes(0)
    answers: dict[int, Answer] = {}
    requests = {node.id: Request("describe") for node in nodes}
    transport.exchange(requests, group="roll-call", on_answer=answers.__setitem__)
    found = [
        {"name": node.name, "node": node.id, **_answered(answers.get(node.id))}
        for node in sorted(nodes, key=lambda node: (node.name, node.id))
    ]
    return {"library": cadp_fl.__version__, "nodes": found}


def _answered(answer: Answer | None) -> dict[str, Any]:
    """Return what a node's answer says: a description, or why there is none."""
    if answer is None:
        return {"error": "did not answer in time; its agent may be at work", "code": None}
    if isinstance(answer, CadpError):
        return {"error": str(answer), "code": answer.code}
    return _described(answer)


def _described(reply: Reply) -> dict[str, Any]:
    try:
        description = Description.model_validate(dict(reply.content))
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        return {"error": f"describes itself by another schema (field '{field[:80]}')", "code": None}
    return {
        "site": description.site,
        "library": description.library,
        "dataset": description.dataset.name,
        "classes": len(description.dataset.classes),
        "unit": description.unit,
        "train": description.train,
        "test": description.test,
        "noise": description.noise,
    }

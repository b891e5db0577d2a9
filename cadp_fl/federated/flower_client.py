"""The Flower side of a site: named actions on any `ClientApp`, passed on to a `SitePort`.

In deployment this code arrives from the server, so it holds neither torch nor data code: it can ask the site, and
nothing else.
"""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from cadp_fl.errors import CadpError, ConfigError, ExchangeError, PrivacyError
from cadp_fl.json_text import parse_json
from cadp_fl.site.client import AgentClient
from cadp_fl.site.protocol import ACTIONS, Action, Reply, Request, SitePort

__all__ = [
    "MAX_JSON_BYTES",
    "agent_site",
    "decode",
    "decode_reply",
    "encode_request",
    "is_simulated",
    "register",
]

MAX_JSON_BYTES = 16 << 20
RECORD = "cadp"
AGENT = "agent"
"""Key of a SuperNode's config: the path of the agent's socket."""

_NAME = re.compile(r"[A-Za-z0-9./_-]{0,200}")

_log = logging.getLogger(__name__)

SiteFactory = Callable[[Context], SitePort]


def register(app: ClientApp, site_for: SiteFactory, *, explain: bool = False) -> None:
    """Add the actions of a site to a `ClientApp`. Its own handlers stay as they are.

    Args:
        app: any Flower `ClientApp` of the message API.
        site_for: returns the site that a message is for.
        explain: whether an error's text crosses to the server, in a simulation. It may hold values that records had a
            part in, so a real site sends the error's number alone, whatever stands here, and keeps the text in its log.
    """
    for action, message_type in ACTIONS.items():
        category, name = message_type.split(".")
        getattr(app, category)(name)(_handler(action, site_for, explain))


def is_simulated(context: Context) -> bool:
    """Return whether a node is a simulated one: Flower numbers those, and a hospital's SuperNode names its agent."""
    return "partition-id" in context.node_config and AGENT not in context.node_config


def agent_site(context: Context) -> SitePort:
    """Return the site whose agent the hospital's SuperNode names: `--node-config 'agent="/path/of/agent.sock"'`.

    Raises:
        ConfigError: the SuperNode names none.
    """
    path = context.node_config.get(AGENT)
    if not isinstance(path, str):
        raise ConfigError(
            "A hospital's SuperNode names the socket of the site's agent. This one does not; start it with cadp-fl "
            "site connect, or with --node-config 'agent=\"/path/of/agent.sock\"'."
        )
    return AgentClient(Path(path))


def _handler(action: Action, site_for: SiteFactory, explain: bool) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        explains = explain and is_simulated(context)
        try:
            request = _decode_request(action, message.content)
            content = _encode_reply(site_for(context).call(request))
        except CadpError as error:
            _log.error("%s was refused: %s", action, error)
            content = _encode_error(error.code, str(error) if explains else "")
        except Exception as error:  # whatever it is, it must not carry values to the server
            _log.exception("%s failed", action)
            content = _encode_error(CadpError.code, f"{type(error).__name__}: {error}" if explains else "")
        return Message(content, reply_to=message)

    return handle


def encode_request(request: Request) -> RecordDict:
    """Return a request as Flower records."""
    content = _encode(dict(request.settings), dict(request.arrays))
    content[f"{RECORD}-request"] = ConfigRecord({"run": request.run, "id": request.id})
    return content


def decode_reply(content: RecordDict) -> Reply | CadpError:
    """Return what a site answered: a reply, or the error that it named.

    Raises:
        ExchangeError: it is neither.
    """
    error = content.config_records.get(f"{RECORD}-error")
    if error is not None:
        return _decode_error(error)
    settings, arrays = decode(content)
    return Reply(settings, arrays)


def _decode_request(action: Action, content: RecordDict) -> Request:
    settings, arrays = decode(content)
    names = content.config_records.get(f"{RECORD}-request", {})
    run, name = (str(names.get(key, "")) for key in ("run", "id"))
    if not (_NAME.fullmatch(run) and _NAME.fullmatch(name)):
        raise ExchangeError(
            "The id of a run or of a request is up to 200 letters, digits and ./_- . Found another one."
        )
    return Request(action, settings, arrays, run, name)


def _encode_reply(reply: Reply) -> RecordDict:
    return _encode(dict(reply.content), dict(reply.arrays))


def _encode(values: dict[str, Any], arrays: dict[str, np.ndarray]) -> RecordDict:
    return RecordDict(
        {
            f"{RECORD}-json": ConfigRecord({"json": json.dumps(values)}),
            f"{RECORD}-arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
        }
    )


def decode(content: RecordDict) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a message holds: JSON values, and arrays by name.

    Raises:
        ExchangeError: it is none of ours.
    """
    try:
        text = content.config_records[f"{RECORD}-json"]["json"]
        record = content.array_records[f"{RECORD}-arrays"]
    except KeyError as error:
        raise ExchangeError(f"A message lacks the record {error}; compare the library's versions.") from None
    if not isinstance(text, str) or len(text) > MAX_JSON_BYTES:
        raise ExchangeError(f"A message's settings are JSON of at most {MAX_JSON_BYTES} bytes. Found something else.")
    try:
        values = parse_json(text)
        arrays = {name: array.numpy() for name, array in record.items()}
    except (ValueError, TypeError, EOFError) as error:
        raise ExchangeError("A message holds JSON and numpy arrays. Found something else.") from error
    if not isinstance(values, dict):
        raise ExchangeError(f"A message's settings are a JSON object. Found {type(values).__name__}.")
    return values, arrays


def _encode_error(code: int, text: str) -> RecordDict:
    return RecordDict({f"{RECORD}-error": ConfigRecord({"code": code, "text": text})})


def _decode_error(record: ConfigRecord) -> CadpError:
    code, text = record.get("code"), record.get("text")
    number = code if isinstance(code, int) else CadpError.code
    # A site is untrusted: what it says is one line on a terminal, and moves no cursor there.
    line = "".join(each if each.isprintable() else " " for each in str(text or "")[:1000])
    return CadpError.named(number, f"{line} (code {number})" if line and PrivacyError.code <= number < 400 else line)

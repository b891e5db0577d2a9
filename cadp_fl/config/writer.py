"""YAML that this and any other reader takes for what was meant."""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from cadp_fl.config.scalars import HEXADECIMAL, NUMBER, OCTAL, UNSEEN, WHOLE, check_printable

__all__ = ["dump_tree"]


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that this or another reader would take for something else, and writes every value out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    check_printable(text, "text in a config")
    style = "|" if "\n" in text else '"' if UNSEEN.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)
_Dumper.add_multi_representer(list, yaml.SafeDumper.represent_list)
for _tag, _digits in (("int", f"{WHOLE}|{OCTAL}|{HEXADECIMAL}"), ("float", NUMBER)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_digits})$"), list("+-.0123456789"))


def dump_tree(tree: Mapping[str, Any], *, in_one_line: bool = False) -> str:
    """Return JSON values as YAML that reads back to equal ones."""
    return yaml.dump(
        tree,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=in_one_line,
        width=math.inf if in_one_line else 100,
    )

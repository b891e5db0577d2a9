"""Options that several commands share."""

from typing import Annotated, Any

import typer

from cadp_fl.errors import InputError

__all__ = ["AsJson", "DataKeys", "Device", "Override", "Quiet", "Silent", "data_keys"]

Override = Annotated[
    list[str] | None, typer.Option("--set", help="Override one value: dotted.key=value. May be repeated.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Silent = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and no progress.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:<index>.")]
DataKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="One key of `data`: size=64, columns=schema.yaml, window=[-1000, 400]. May be repeated."
    ),
]


def data_keys(settings: list[str] | None) -> dict[str, Any]:
    """Return keys of `data` by name, as --set gives them.

    Raises:
        InputError: one is not given as key=value.
        ConfigError: a value breaks a rule of YAML.
    """
    from cadp_fl.config.reader import read_value

    keys: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise InputError(f"A key of data is set as 'key=value'. Found '{setting}'.")
        keys[key.strip().removeprefix("data.")] = read_value(text, f"--set {setting}")[0]
    return keys

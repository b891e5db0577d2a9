"""`cadp-fl run`: a study over the sites of a real federation, what has become of it, and how to stop it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cadp_fl.cli.complaints import StoppedError
from cadp_fl.cli.console import outlasting, plain
from cadp_fl.cli.options import AsJson, Override, Quiet
from cadp_fl.ending import stopping_at_once
from cadp_fl.errors import CadpError, InputError

__all__ = ["run"]


def run(
    config: Annotated[Path | None, typer.Argument(help="A study config (YAML).")] = None,
    federation: Annotated[
        Path | None, typer.Option(help="The coordinator's folder, that cadp-fl coordinator init made.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run folder: a new or an empty one.")
    ] = None,
    set_: Override = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in --output; sites spend nothing twice.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how far the run in --output has come.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the run in --output; it may be resumed.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a study over the sites of a federation: every method, one report.

    The coordinator serves the federation meanwhile (cadp-fl coordinator serve).
    The run goes on when this command ends, by Ctrl-C or otherwise.
    """
    if output is None:
        raise InputError("A run needs a folder for its results. Found none; give --output FOLDER.")
    if status or stop:
        if config is not None or resume or (status and stop):
            raise InputError("A run is started, resumed, looked at or stopped. Found more than one of it; choose one.")
        _stop(output) if stop else _status(output, as_json=as_json)
        return
    if config is None or federation is None:
        missing = "config" if config is None else "federation"
        raise InputError(f"A run needs a study config and the coordinator's folder. Found no {missing}; give both.")
    _run(config, federation, output, set_ or [], resume=resume, silent=quiet or as_json, as_json=as_json)


def _run(
    config: Path, federation: Path, output: Path, overrides: list[str], *, resume: bool, silent: bool, as_json: bool
) -> None:
    with stopping_at_once():
        from cadp_fl.cli.progress import progress_to, show_results
        from cadp_fl.deployment.run import run_deployed

    console = outlasting()
    try:
        with progress_to(console, silent=silent) as watch:
            summary = run_deployed(config, federation, output, overrides, watch=watch, resume=resume)
    except KeyboardInterrupt:
        raise StoppedError(_left_going(output)) from None
    except InputError:
        raise
    except CadpError:
        if (output / "report.html").is_file() and not silent:  # a run that ended early still has results
            show_results(console, json.loads((output / "summary.json").read_text(encoding="utf-8")), output)
        raise
    show_results(console, summary, output, as_json=as_json)


def _left_going(output: Path) -> str:
    """Return what holds after Ctrl-C: a run that was started goes on."""
    from cadp_fl.deployment.started_run import StartedRun

    if StartedRun.of(output) is None:
        return "Stopped. No run was started."
    return (
        f"The run goes on. Look at it with cadp-fl run --status --output {output}, or stop it with cadp-fl run --stop "
        f"--output {output}."
    )


def _status(output: Path, *, as_json: bool) -> None:
    from cadp_fl.deployment.started_run import run_status

    status = run_status(output)
    if as_json:
        typer.echo(json.dumps(status, indent=2))
        return
    for line in _lines(status):
        typer.echo(plain(line))


def _lines(status: dict[str, Any]) -> list[str]:
    """Return a run's status as text."""
    lines = [
        f"Run {status['flower_run']} over the federation '{status['federation']}', started {status['started']}. "
        f"Flower says: {status['flower']}."
    ]
    if status["phase"] is not None:
        answered = ", ".join(status["answered"]) or "no site yet"
        lines.append(
            f"{status['phase']}  {status['round']}/{status['of']}  answered: {answered}. Last step: {status['since']}."
        )
    else:
        lines.append("No site has been asked anything yet.")
    lines += [f"  {each['site']} {each['reason']}" for each in status["waiting"]]
    lines += [f"  {gap['site']} was missing in {gap['phase']}: {gap['reason']}" for gap in status["missing"]]
    if status["end"] is not None:
        lines.append(f"It ended: {status['end']['status']}. {status['end']['reason']}".rstrip())
    return lines


def _stop(output: Path) -> None:
    from cadp_fl.deployment.started_run import stop_run

    stop_run(output)
    typer.echo(f"Stopped. '{output}' holds what is known; go on with --resume.")

"""The command line: parse, call, print."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import cadp_fl
from cadp_fl.cli import agent
from cadp_fl.cli.account import account
from cadp_fl.cli.audit import audit
from cadp_fl.cli.compare import compare
from cadp_fl.cli.complaints import StoppedError, complain
from cadp_fl.cli.console import console_to, outlasting, set_streams
from cadp_fl.cli.coordinator import coordinator_app
from cadp_fl.cli.data import data_app
from cadp_fl.cli.doctor import doctor
from cadp_fl.cli.models import predict, pretrain, train_central
from cadp_fl.cli.options import AsJson, Override, Quiet
from cadp_fl.cli.releases import export, privatize
from cadp_fl.cli.run import run
from cadp_fl.cli.site import site_app
from cadp_fl.ending import interrupted, interruptible, stopping_at_once
from cadp_fl.errors import CadpError, InputError, PrivacyError
from cadp_fl.stopping import STOPPED

__all__ = ["main"]

app = typer.Typer(
    name="cadp-fl",
    help="Federated learning on privatized records: content-aware differential privacy on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

is_debugging = False


def main() -> None:
    """Run the command line. An error is one sentence on stderr, and the exit status says whose fault it was."""
    set_streams()
    with interruptible():
        try:
            _run()
        except StoppedError as stopped:
            complain(str(stopped))
            sys.exit(STOPPED)


def _run() -> None:
    try:
        app()
    except SystemExit as ended:  # which typer makes of an interrupt
        if ended.code == STOPPED and interrupted():
            raise StoppedError("Stopped.") from None
        raise
    except StoppedError:
        raise
    except CadpError as error:
        if is_debugging:
            raise
        complain(f"{error} (code {error.code})" if isinstance(error, PrivacyError) else str(error))
        sys.exit(error.exit_status)
    except OSError as error:
        if is_debugging:
            raise
        complain(f"The system refused: {error}.")
        sys.exit(1)
    except Exception as error:
        if is_debugging:
            raise
        if interrupted():  # in the midst of somebody's C code, which made another error of it
            raise StoppedError("Stopped.") from None
        said = f"{type(error).__name__}: {error}"
        complain(f"This is a fault of cadp-fl itself ({said[:300]}); show it by cadp-fl --debug, and report it.")
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cadp-fl {cadp_fl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    global is_debugging
    is_debugging = debug


@app.command(epilog="Example: cadp-fl simulate configs/quickstart.yaml --output runs/quickstart")
def simulate(
    config: Annotated[Path, typer.Argument(help="A study config (YAML).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run folder: a new or an empty one.")
    ] = None,
    set_: Override = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted run in --output, from its last finished phase.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print planned epsilons, bytes, memory and time; run and write nothing.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Simulate a study on this machine: every site, every method, one report."""
    if dry_run:
        _dry_run(config, set_ or [], as_json=as_json)
        return
    if output is None:
        raise InputError("A run needs a folder for its results. Found none; give --output FOLDER, or --dry-run.")
    with stopping_at_once():
        from cadp_fl.cli.progress import progress_to, show_results
        from cadp_fl.study.run import run_study

    console, silent = outlasting(), quiet or as_json
    try:
        with progress_to(console, silent=silent) as watch:
            summary = run_study(config, output, set_ or [], watch=watch, resume=resume)
    except KeyboardInterrupt:
        raise StoppedError(
            f"Stopped. No process was left behind. '{output}' holds what was written; go on with --resume, or give the "
            "next run another --output."
            if output.exists()
            else "Stopped. Nothing was started."
        ) from None
    except InputError:
        raise
    except CadpError:
        if (output / "report.html").is_file() and not silent:  # a run that lost its quorum still has results
            show_results(console, json.loads((output / "summary.json").read_text(encoding="utf-8")), output)
        raise
    show_results(console, summary, output, as_json=as_json)


def _dry_run(config: Path, overrides: list[str], *, as_json: bool) -> None:
    from cadp_fl.cli.estimate import estimate_tables
    from cadp_fl.study.estimate import estimate_study

    estimate = estimate_study(config, overrides)
    if as_json:
        typer.echo(json.dumps(estimate.to_json(), indent=2))
    else:
        estimate_tables(console_to(), estimate)


@app.command(epilog="Example: cadp-fl report runs/quickstart")
def report(
    run: Annotated[Path, typer.Argument(help="A run folder that holds a summary.json.")],
) -> None:
    """Write a run's report.html again, from what its folder holds."""
    from cadp_fl.report.page import write_report

    typer.echo(f"Report: {write_report(run).resolve()}")


app.command(epilog="Example: cadp-fl run study.yaml --federation coordinator --output runs/first")(run)
app.command(
    epilog="Example: cadp-fl compare configs/quickstart.yaml --output comparisons/quickstart --epsilon 1 --epsilon 3 "
    "--seeds 3"
)(compare)
app.command(
    epilog="Example: cadp-fl pretrain configs/quickstart.yaml --set data.source=mnist --output flows/mnist.safetensors"
)(pretrain)
app.command(
    epilog="Example: cadp-fl privatize --flow flows/mnist.safetensors --data north.npz --name north --epsilon 3 "
    "--delta 1e-5 --clip-norm 4 --output releases/north"
)(privatize)
app.command(
    "train-central",
    epilog="Example: cadp-fl train-central releases/north releases/east --output classifier.safetensors",
)(train_central)
app.command(epilog="Example: cadp-fl predict classifier.safetensors scan.png scans/ --json")(predict)
app.command(epilog="Example: cadp-fl audit --mechanism gaussian --epsilon 3 --delta 1e-5 --dims 16")(audit)
app.command(epilog="Example: cadp-fl doctor /srv/cadp-fl")(doctor)
app.command(epilog="Example: cadp-fl export releases/north releases/east --to medmnist pooled.npz")(export)
site_app.command(
    "init",
    epilog="Example: cadp-fl site init north --invitation invitation.yaml --data north.npz --classes normal,pneumonia "
    "--dataset chest-xray",
)(agent.init)
site_app.command(epilog="Example: cadp-fl site serve north")(agent.serve)
site_app.command(epilog="Example: cadp-fl site status north")(agent.status)
site_app.command(epilog="Example: cadp-fl site reload north")(agent.reload)
app.add_typer(site_app)
app.add_typer(coordinator_app)
app.add_typer(data_app)
app.add_typer(account, name="account")


@app.command(epilog="Example: cadp-fl bench --only flow-training --threads 2")
def bench(
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:<index>.")] = "auto",
    only: Annotated[list[str] | None, typer.Option("--only", help="One benchmark by name. May be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Show that it works, in seconds.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of torch on the CPU.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON, and no progress.")] = False,
) -> None:
    """Measure throughput here, as ratios to straightforward code that does the same."""
    from cadp_fl.bench.run import run_benchmarks, steps_of
    from cadp_fl.cli.bench import benchmarks_table, ticks_to

    console, names = console_to(), only or []
    with ticks_to(console, steps_of(names, quick=quick), silent=quiet or as_json) as tick:
        results = run_benchmarks(names, device=device, quick=quick, threads=threads, tick=tick)
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        benchmarks_table(console, results)


if __name__ == "__main__":
    main()

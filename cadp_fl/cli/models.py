"""The commands that train a network in one place, and the one that asks it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cadp_fl.cli.console import console_to
from cadp_fl.cli.options import AsJson, Device, Override, Quiet

__all__ = ["predict", "pretrain", "train_central"]


def pretrain(
    config: Annotated[Path, typer.Argument(help="A study config (YAML).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The flow's new file (.safetensors).")],
    set_: Override = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a study's flow on PUBLIC records, in one place.

    It trains, without differential privacy, on all training records of the
    study's data source, and you DECLARE THEM PUBLIC by calling it: what is
    claimed of a release that uses the flow rests on that. It takes
    flow.training.rounds times flow.training.local_epochs passes.
    """
    from cadp_fl.cli.progress import progress_to
    from cadp_fl.config import load_study
    from cadp_fl.standalone.pretrain import pretrain

    console = console_to()
    study = load_study(config, set_ or [])
    with progress_to(console, silent=quiet or as_json) as watch:
        made = pretrain(study, output, watch=watch)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    typer.echo(
        f"Flow: {output}, {made['bits_per_dim']:.3f} bits per dimension after {made['epochs']} epochs.\n"
        f"It says that it is public: you declared that the {made['records']} training records of '{made['dataset']}' "
        "are. A release of those same records can claim nothing with it.\n"
        f"sha256 {made['sha256']}, by which a site's policy names it (public_flows)."
    )


def train_central(
    bundles: Annotated[list[Path], typer.Argument(help="Release folders, of one or more sites.", metavar="BUNDLE...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The classifier's new file (.safetensors).")],
    config: Annotated[
        Path | None, typer.Option(help="A study config, for the classifier's settings, its seed and the device.")
    ] = None,
    set_: Override = None,
    model: Annotated[str | None, typer.Option(help="A classifier: cnn (the default) or linear.")] = None,
    width: Annotated[int | None, typer.Option(help="Channels of its first layer (16).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the class-balanced releases (60).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Records in one step (64).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak step size (0.002).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decoupled weight decay (0.0001).")] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights and batches (0).", min=0)] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Evaluate, exactly, on real records: the test split of a MedMNIST file, or, of a table, all rows or "
            "its test split."
        ),
    ] = None,
    columns: Annotated[
        Path | None, typer.Option(help="Schema file of the table that --test names (as an export's by default).")
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier on releases. Options override the study's settings.

    With --config and a study's releases, in the order of their sites' names,
    the weights are those that the federation gets. Training on releases costs
    no privacy: what each release claims still holds, and no more.
    """
    from cadp_fl.cli.progress import progress_to
    from cadp_fl.config import load_study
    from cadp_fl.errors import InputError
    from cadp_fl.standalone.central import ClassifierOptions, train_central

    if set_ and config is None:
        raise InputError(f"An override changes a study. Found --set {set_[0]} without --config; pass one.")
    options = ClassifierOptions(
        model=model,
        width=width,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        device=device,
    )
    study = load_study(config, set_ or []) if config is not None else None
    with progress_to(console_to(), silent=quiet or as_json) as watch:
        made = train_central(bundles, output, options, study=study, test=test, columns=columns, watch=watch)
    typer.echo(json.dumps(made, indent=2) if as_json else _described(made))


def _described(made: dict[str, Any]) -> str:
    from cadp_fl.privacy.claims import format_against, format_epsilon
    from cadp_fl.report.share import format_share

    lines = [f"Classifier: {made['classifier']}, trained on {made['records']} released records."]
    for release in made["releases"]:
        claims = release["guarantee"]
        if claims == "end-to-end":
            claims += f", epsilon {format_epsilon(release['epsilon'])}"
        elif claims == "given-flow":
            claims += f", flow NOT covered ({format_epsilon(release['epsilon_if_flow_were_fixed'])} if it were fixed)"
        if claims != "none":
            claims += format_against(release["against"])
        seeded = "; noise was SEEDED, which protects nothing" if release["noise"] == "seeded" else ""
        lines.append(f"  {release['site']}: {release['records']} records, guarantee {claims}{seeded}")
    if "test" in made:
        names = ("accuracy", "balanced_accuracy", "auroc", "macro_f1")
        figures = [f"{name} {format_share(made['test'][name])}" for name in names]
        lines.append(f"On {made['test']['records']} real test records: {', '.join(figures)}.")
    return "\n".join(lines)


def predict(
    classifier: Annotated[
        Path, typer.Argument(help="A classifier that cadp-fl stored (.safetensors).", metavar="MODEL")
    ],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="PNG and JPEG images, folders of them, .npz files, or tables of rows."),
    ],
    columns: Annotated[
        Path | None,
        typer.Option(help="Schema file of rows: how their tables are written (separator, missing values, ...)."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a CSV table, and print none.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Resize images of another size; else refused.")] = False,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="With --output, print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value a line.")] = False,
) -> None:
    """Say which class each image, or row, is of, one line each, and how likely.

    FILE is a PNG or JPEG image of 8 bits, a folder of them (with all below
    it), or an .npz. Of an npz, the array images is read, or else test_images:
    uint8, (images, height, width) or (images, height, width, 3). Images become
    grey or coloured as the classifier needs, and upright. What is left out of
    a folder (hidden files, links, other kinds) and what is changed in an image
    is printed on stderr; CMYK, 16 bits, transparency and damage are refused.
    For a classifier of rows, FILE is a CSV or Parquet file that has the columns
    it was trained on by their names, and any others.
    MODEL is a run's models/classifier-METHOD.safetensors; flow-bayes leaves
    none. Probabilities are not calibrated.
    """
    from cadp_fl.outputs import check_new
    from cadp_fl.report.share import format_share
    from cadp_fl.standalone.predict import predict, write_csv

    if output is not None:
        check_new(output, "A table")
    notes: list[str] = []
    predictions = predict(
        classifier, files, resize=resize, device=device or "auto", columns=columns, report=notes.append
    )
    if output is not None:
        write_csv(predictions, output)
    for sentence in [] if quiet else notes:
        typer.echo(sentence, err=True)
    if as_json:
        for prediction in predictions:
            typer.echo(json.dumps(prediction.to_json()))
    elif output is not None and not quiet:
        typer.echo(f"Wrote {len(predictions)} predictions to {output}.")
    elif output is None:
        file_width = max(len(prediction.source) for prediction in predictions)
        label_width = max(len(prediction.label) for prediction in predictions)
        for prediction in predictions:
            named = f"{prediction.source:<{file_width}}  {prediction.label:<{label_width}}"
            typer.echo(f"{named}  {format_share(prediction.probability)}")

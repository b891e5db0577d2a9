"""The commands that make releases, and that give them to other tools."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cadp_fl.cli.options import AsJson, Device, Silent

__all__ = ["export", "privatize"]


def privatize(
    flow: Annotated[Path, typer.Option(help="A flow that cadp-fl pretrain or a run stored.")],
    data: Annotated[
        Path,
        typer.Option(
            help="A real site's folder, with its policy, ledger and audit log; a MedMNIST file (.npz) or, for a flow "
            "of rows, a table, of which all but the test split is taken; or a study config (.yaml) with --site."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle's new folder.")],
    site: Annotated[str | None, typer.Option(help="Which site of the study; its simulated records are taken.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Pseudonym in the manifest; the study's site, or 'site', by default.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Budget, under replace-one. No default for a file.")] = None,
    delta: Annotated[
        float | None, typer.Option(help="At most 1 / (10 n). No default for a file; laplace has none.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="C, of a latent. No default for a file.")] = None,
    latent_dims: Annotated[int | None, typer.Option(help="Latent dimensions that carry a record (all).")] = None,
    mechanism: Annotated[str | None, typer.Option(help="gaussian (the default), grid-gaussian or laplace.")] = None,
    shrinkage: Annotated[str | None, typer.Option(help="typical-set (the default) or posterior-mean.")] = None,
    noise: Annotated[
        str | None, typer.Option(help="entropy (a file's default), or seeded: repeatable, so it protects nothing.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of seeded noise; the study's by default.", min=0)] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="public, or covered: drawn by randomized response, so that the claim covers them."),
    ] = None,
    unit: Annotated[str | None, typer.Option(help="record (the default) or patient: whom the claim protects.")] = None,
    records_per_patient: Annotated[int | None, typer.Option(help="m: records that each patient contributes.")] = None,
    policy: Annotated[Path | None, typer.Option(help="A real site's policy.yaml; goes with --ledger.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Its durable ledger, made by cadp-fl site ledger init.")] = None,
    mark: Annotated[Path | None, typer.Option(help="The ledger's mark, where it is not beside it.")] = None,
    columns: Annotated[
        Path | None, typer.Option(help="Schema file of the table that --data names (as an export's by default).")
    ] = None,
    device: Device = None,
    quiet: Silent = False,
    as_json: AsJson = False,
) -> None:
    """Make one site's release without a federation, and say what it claims.

    Of a study, an option that is left out is the study's, and with seeded
    noise the bundle is the federation's. Labels are public by declaration, unless
    they are covered: every record leaves with its true label, and no claim
    covers it. So are the attributes of records that have some.

    With a site's folder, or with --policy and --ledger, what the site does not
    allow is refused before anything is computed, what is spent is written down
    for good, and each step is in audit.jsonl beside the ledger. Who is tested on
    by the ledger's rule is never released.

    NO LEDGER: without them this command remembers nothing. A second release of
    the same records composes with the first (epsilons and deltas add), and
    nothing here counts that.
    """
    from cadp_fl.standalone.privatize import make_release
    from cadp_fl.standalone.release_inputs import ReleaseOptions

    options = ReleaseOptions(
        site=site,
        name=name,
        epsilon=epsilon,
        delta=delta,
        clip_norm=clip_norm,
        latent_dims=latent_dims,
        mechanism=mechanism,
        shrinkage=shrinkage,
        noise=noise,
        seed=seed,
        device=device,
        labels=labels,
        unit=unit,
        records_per_patient=records_per_patient,
        policy=policy,
        ledger=ledger,
        mark=mark,
        columns=columns,
    )
    made = make_release(flow, data, output, options)
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=2))
    elif not quiet:
        manifest = made.manifest
        typer.echo(
            f"Release: {made.folder}, {manifest.records} records, {manifest.bytes} bytes, by the {manifest.mechanism} "
            "mechanism."
        )
        typer.echo("\n".join(line for line in (made.statement, made.caution, made.composition) if line))
        typer.echo(f"Assumptions: {' '.join(made.assumptions)}\nNot covered: {' '.join(made.not_covered)}")


def export(
    bundles: Annotated[list[Path], typer.Argument(help="Release folders, of one or more sites.", metavar="BUNDLE...")],
    to: Annotated[
        tuple[str, Path],
        typer.Option(
            help="medmnist OUT.npz: train_images, train_labels and any train_attributes, no val and no test split, and "
            "the manifests as releases. png OUTDIR: <class>/<number>.png, a README.md and the manifests. Of rows, csv "
            "OUTDIR or parquet OUTDIR: records, the schema file columns.yaml, a README.md and the manifests.",
            metavar="FORMAT PATH",
        ),
    ],
    quiet: Silent = False,
    as_json: AsJson = False,
) -> None:
    """Write the records of releases as a MedMNIST file, PNG images, CSV or Parquet.

    For tools that do not read a bundle. Every shard is verified on the way,
    and nothing is overwritten.
    """
    from cadp_fl.standalone.export import export

    kind, output = to
    records = export(bundles, kind, output)
    if as_json:
        typer.echo(json.dumps({"format": kind, "output": str(output), "records": records}, indent=2))
    elif not quiet:
        typer.echo(f"Wrote {records} records to {output}.")

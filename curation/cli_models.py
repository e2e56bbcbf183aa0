"""Commands about trained models: `curation models ...`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

app = typer.Typer(no_args_is_help=True, help="Trained captioners and matchers: list, show, promote, roll back.")
out = Console(soft_wrap=True)

StoreRoot = Annotated[str, typer.Option("--store", envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")]
Name = Annotated[str, typer.Argument(help="Name of the model.")]
Version = Annotated[str, typer.Argument(help="Its version.")]
By = Annotated[str, typer.Option(help="Who does it; it stays in the history.")]
DEFAULT_STORE = "var/store"


@app.command("list")
def list_models(store: StoreRoot = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List every version of every model, the promoted ones with a star.

    * `curation models list`
    """
    from curation.captions import registry
    from curation.store import Store

    root = Store(store)
    rows: list[dict[str, Any]] = []
    for name in registry.names(root):
        now = registry.promoted(root, name)
        for version in registry.versions(root, name):
            found = registry.read(root, name, version)
            scores = {digest: one.metrics for digest, one in registry.evaluations(root, name, version).items()}
            rows.append({"name": name, "version": version, "role": found.role, "promoted": version == now,
                         "rounds": found.rounds, "metrics": scores})  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        star = "*" if row["promoted"] else " "
        told = "  ".join(f"{name} {value:.4f}" for one in row["metrics"].values() for name, value in one.items())
        out.print(Text(f"{star} {row['name']}@{row['version']}  {row['role']}, round {row['rounds']}  {told}"))


@app.command()
def show(
    name: Name,
    version: Annotated[str, typer.Argument(help="Its version; left out: the promoted one.")] = "",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Tell what a version was made from and how good it is, and what was promoted when and why.

    * `curation models show captions-en`
    """
    from curation.captions import registry
    from curation.errors import ConfigError
    from curation.store import Store

    root = Store(store)
    version = version or registry.promoted(root, name)
    if not version:
        there = ", ".join(registry.versions(root, name)) or "none"
        raise ConfigError(f"no version of {name!r} is promoted: name one; there are: {there}")
    found = registry.read(root, name, version)
    measured = registry.evaluations(root, name, version)
    moves = registry.history(root, name)
    if as_json:
        told: dict[str, Any] = {
            "manifest": found.model_dump(),
            "evaluations": {digest: one.model_dump() for digest, one in measured.items()},
            "history": [move.model_dump() for move in moves],
        }
        typer.echo(json.dumps(told, indent=1, ensure_ascii=False))
        return
    lines = [
        f"{name}@{version}: {found.role}, round {found.rounds}, of {found.created_at} by {found.code_version}",
        f"from {found.base_model}" + (f", after {found.parent}" if found.parent else ""),
        *(f"learnt from {one.kind} {one.name}, {one.rows} rows, {one.version}" for one in found.data),
        *(f"training {key}: {value}" for key, value in found.metrics.items() if not isinstance(value, list)),
        *(f"setting {key}: {value}" for key, value in found.settings.items()),
    ]
    for digest, one in measured.items():
        lines.append(f"on {one.pictures} held-out pictures, {digest}:")
        for whose, metrics in {"this": one.metrics, **one.beside}.items():
            lines.append(f"  {whose:<10}" + "  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    lines += [f"{move.at} {move.action} {move.version} by {move.by}: {move.reason}" for move in moves]
    out.print(Text("\n".join(lines)))


@app.command()
def promote(
    name: Name,
    version: Version,
    by: By,
    metric: Annotated[str, typer.Option(help="What to compare by: cider, itm_auc, bleu4, ...; empty: by role.")] = "",
    margin: Annotated[float | None, typer.Option(help="Least gain; left out: the metric's own.")] = None,
    held_out: Annotated[str, typer.Option(help="Digest of the held-out set, where there are several.")] = "",
    note: Annotated[str, typer.Option(help="Anything to remember.")] = "",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make a version the one that `registry:NAME` means; refused unless it beats the promoted one by the margin.

    * `curation models promote captions-en 2026.11.23-ab12cd34 --margin 0.02 --by ada`
    """
    from curation.captions import registry
    from curation.store import Store

    made = registry.promote(
        Store(store), name, version, metric=metric, margin=margin, held_out=held_out, by=by, note=note
    )
    _tell(made.model_dump(), f"{name}@{made.version} is promoted: {made.reason}", as_json)


@app.command()
def rollback(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why; it stays in the history.")],
    by: By,
    to: Annotated[str, typer.Option(help="Version to go back to; left out: the one before.")] = "",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Promote again what was promoted before; runs that are planned already keep the version they pinned.

    * `curation models rollback captions-en --reason "calls every animal a dog" --by ada`
    """
    from curation.captions import registry
    from curation.store import Store

    made = registry.rollback(Store(store), name, to=to, reason=reason, by=by)
    _tell(made.model_dump(), f"{name}: back from {made.before} to {made.version}", as_json)


def _tell(said: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(said, indent=1, ensure_ascii=False))
    else:
        out.print(Text(text))

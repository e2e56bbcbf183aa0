"""Commands about captions: `curation captions ...`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curation.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Teachers, students and what they are given.")
out = Console(soft_wrap=True)


@app.callback()
def captions() -> None:
    """Teachers, students and what they are given."""


@app.command()
def seed(
    name: Annotated[str, typer.Argument(help="Name of the seed set.")],
    dump: Annotated[str, typer.Option(help="Dump to choose from.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 100_000,
    at_least: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Quality bar; the first one ranks.")
    ] = None,
    clusters: Annotated[int, typer.Option(min=1, help="Most clusters to spread over.")] = 1000,
    draw: Annotated[int, typer.Option(help="Another number, another draw.")] = 0,
    recipe: Annotated[str | None, typer.Option(help="Needed where several recipes ran on the dump.")] = None,
    store: Annotated[str, typer.Option(envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")] = "var/store",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")] = False,
) -> None:
    """Choose good pictures that differ from each other, for a teacher to describe.

    * `curation captions seed first --dump demo --count 100 --at-least similarity=0.3 --at-least aesthetic=5`
    """
    from curation import dumps
    from curation.block import recipe_key
    from curation.captions.seed import make_seed_set
    from curation.pipeline import saved_recipe
    from curation.schema import COLUMNS
    from curation.store import Store

    bars = {}
    for bar in at_least or ["similarity=0.3"]:
        column, _, value = bar.partition("=")
        try:
            bars[column] = float(value)
        except ValueError:
            raise ConfigError(f"--at-least {bar}: expected COLUMN=NUMBER, such as similarity=0.3") from None
        if column not in COLUMNS:
            raise ConfigError(f"--at-least {bar}: there is no column {column}")
    root = Store(store)
    pinned = saved_recipe(root, recipe_key(root, dump, recipe))
    shards = range(len(dumps.archives_of(root, dump, pinned.stages.extract.archive)))
    made = make_seed_set(root, pinned, dump, shards, name, count, bars=bars, clusters=clusters, seed=draw)
    if as_json:
        typer.echo(json.dumps(vars(made)))
    else:
        out.print(Text(f"{made.chosen} of {made.eligible} samples, {made.clusters} clusters: {root.root}/{made.key}"))


@app.command()
def statistics(
    dataset: Annotated[str, typer.Argument(help="Dataset, by its recipe's name; left out with --dump.")] = "",
    version: Annotated[str, typer.Option(help="Version, or latest.")] = "latest",
    dump: Annotated[str, typer.Option(help="A dump that was processed, in the place of a version.")] = "",
    recipe: Annotated[str | None, typer.Option(help="Needed where several recipes ran on the dump.")] = None,
    store: Annotated[str, typer.Option(envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")] = "var/store",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")] = False,
) -> None:
    """Tell what captions talk about: length, place, attributes, writing, knowledge; synthetic beside alt texts.

    * `curation captions statistics sharegpt4v`
    * `curation captions statistics --dump demo --json`
    """
    from curation import dumps
    from curation.block import recipe_key
    from curation.captions.statistics import of_dump, of_version, table
    from curation.pipeline import saved_recipe
    from curation.store import Store

    if bool(dataset) == bool(dump):
        raise ConfigError("name either a dataset or --dump")
    root = Store(store)
    if dump:
        pinned = saved_recipe(root, recipe_key(root, dump, recipe))
        shards = range(len(dumps.archives_of(root, dump, pinned.stages.extract.archive)))
        figures = of_dump(root, pinned, dump, shards)
    else:
        figures = of_version(root, dataset, version)
    if as_json:
        typer.echo(json.dumps(figures, indent=1, ensure_ascii=False))
        return
    head, *rows = table(figures)
    shown = Table(*head)
    for row in rows:
        shown.add_row(*row)
    out.print(shown)

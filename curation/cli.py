"""The `curation` command: the same graph as the DAGs, on one machine, without Airflow."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from curation.errors import ConfigError, CurationError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Common Crawl dumps in, versioned image-text datasets out.\n\n"
    "Exit codes: 0 all is well, 1 shards failed or a problem was found, 2 wrong settings or usage.",
)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

StoreRoot = Annotated[
    str, typer.Option("--store", envvar="CURATION_STORE", help="Local folder or s3://bucket/prefix.", show_default=True)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="Needed where several recipes ran on the dump.")]
DEFAULT_STORE = "var/store"


def main() -> None:
    """Entry point: errors of ours become one clear line and an exit code."""
    logging.basicConfig(level=os.environ.get("CURATION_LOG", "WARNING"), format="%(asctime)s %(message)s")
    try:
        app()
    except CurationError as problem:
        err.print(Text(str(problem), style="red"))
        sys.exit(2 if isinstance(problem, ConfigError) else 1)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe (curation recipes list) or path of a .yaml file.")],
    dump: Annotated[str, typer.Option(help="Name of the crawl; Common Crawl's own, or one that you choose.")],
    source: Annotated[
        str, typer.Option(help="Folder, glob or s3:// prefix of WAT or WARC files; empty: Common Crawl.")
    ] = "",
    shards: Annotated[str, typer.Option(help="Numbers and ranges, such as 0-3,7; empty: the whole block.")] = "",
    block: Annotated[int, typer.Option(help="Which thousand of shards, from 0.")] = 0,
    store: StoreRoot = DEFAULT_STORE,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: gates.too_small.at_least=128 (value as YAML).")
    ] = None,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="Shards at a time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run a recipe on a dump, from archive to dataset version. What is done already is not done again.

    curation run demo --dump mine --source crawl/ --set stages.leakage.evalsets=[]
    """
    from curation import block as blocks
    from curation import generations
    from curation.pipeline import saved_recipe
    from curation.publish.version import export_shard, finish_version, plan_version
    from curation.recipe import load_recipe
    from curation.reports.funnel import funnel, render
    from curation.store import Store

    root = Store(store)
    planned = blocks.plan(
        root,
        load_recipe(recipe, _overrides(settings or [])),
        dump,
        source,
        block=block,
        shards=blocks.parse_shards(shards),
    )
    pinned = saved_recipe(root, planned.recipe_key)
    if until and until not in pinned.stage_names:
        raise ConfigError(f"--until {until}: the recipe runs {', '.join(pinned.stage_names)}")
    failed: dict[int, str] = {}

    def staged(names: Sequence[str]) -> list[tuple[str, Callable[[int], Any]]]:
        return [(n, partial(_run_stage, root, pinned, dump, n)) for n in names if n in wanted]

    wanted = pinned.stage_names[: pinned.stage_names.index(until) + 1] if until else pinned.stage_names
    with _progress() as progress:
        _each_shard(progress, staged(blocks.measure_stages(pinned)), planned.shards, workers, failed)
        judged = staged(blocks.judge_stages(pinned))
        if not failed and judged:
            if "dedup" in wanted:
                generations.match_block(root, pinned, dump, planned.shards)
            _each_shard(progress, judged, planned.shards, workers, failed)
        manifest = ""
        if not failed and not until:
            version = plan_version(root, pinned, dump, planned.shards)
            export: list[tuple[str, Callable[[int], Any]]] = [
                ("export", lambda shard: export_shard(root, pinned, version, dump, shard))
            ]
            _each_shard(progress, export, planned.shards, workers, failed)
            if not failed:
                manifest = finish_version(root, pinned, version, dump, planned.shards)
    found = funnel(root, pinned, dump, planned.shards)
    if as_json:
        typer.echo(json.dumps(found.to_json() | {"manifest": manifest, "failed": failed}))
    else:
        out.print(render(found))
        if manifest:
            out.print(f"dataset version: {root.root}/{manifest.rpartition('/')[0]}", highlight=False)
        for problem in failed.values():
            err.print(Text(problem, style="red"))
    if failed:
        raise typer.Exit(1)


@app.command()
def inspect(
    root: Annotated[str, typer.Argument(help="Store: local folder or s3://bucket/prefix.")],
    dump: Annotated[str, typer.Argument(help="Name of the crawl.")],
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> None:
    """Show the funnel of a dump and how far each shard is.

    curation inspect var/store demo
    """
    from curation.reports.funnel import funnel, render

    store, pinned, shards = _opened(root, dump, recipe)
    found = funnel(store, pinned, dump, shards)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    out.print(render(found))
    table = Table(title="shards by the last stage that is done")
    table.add_column("stage")
    table.add_column("shards", overflow="fold")
    for stage in ("", *pinned.stage_names):
        numbers = [f"{shard:05d}" for shard, state in found.shards.items() if state == stage]
        if numbers:
            more = f" … {len(numbers)} in all" if len(numbers) > 50 else ""
            table.add_row(stage or "nothing yet", ", ".join(numbers[:50]) + more)
    out.print(table)


@app.command()
def why(
    query: Annotated[str, typer.Argument(help="Picture URL or sample_id.")],
    dump: Annotated[str, typer.Option(help="Name of the crawl.")],
    store: StoreRoot = DEFAULT_STORE,
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> None:
    """Tell the life of a sample through all stages: what was measured, where it was dropped and why.

    curation why http://photos.demo.test/cat.jpg --dump demo
    """
    from curation.reports.life import lives

    root, pinned, shards = _opened(store, dump, recipe)
    found = list(lives(root, pinned, dump, shards, query))
    if as_json:
        typer.echo(json.dumps([life.to_json() for life in found], default=str))
    for life in [] if as_json else found:
        style = "green" if life.outcome == "kept" else "yellow"
        line = f"{life.sample_id} in shard {life.shard:05d}: {life.outcome}"
        out.print(Text(f"{line} after {life.stage}; {life.because}" if life.because else line, style=style))
        for stage, values in life.measured.items():
            out.print(Text(f"  {stage}"))
            for name, value in values.items():
                if value is not None:
                    out.print(Text(f"    {name:20} {value}"))
        if life.versions:
            out.print(Text(f"  in versions {', '.join(life.versions)}"))
    if not found:
        err.print(Text(f"{query}: in no shard of {dump} that recipe {pinned.name} has read", style="yellow"))
        raise typer.Exit(1)


@app.command("demo-crawl")
def demo_crawl(
    folder: Annotated[Path, typer.Argument(help="Where to build it.")],
    shards: Annotated[int, typer.Option(min=1, max=64, help="WARC and WAT files to split it into.")] = 4,
) -> None:
    """Build a small hostile web site of real photographs and crawl it into WARC and WAT files.

    curation demo-crawl var/my-crawl
    """
    from curation.demo_crawl.build import build_demo_crawl

    with err.status("building the site and crawling it"):
        build_demo_crawl(folder, shards=shards)
    out.print(f"crawl: {folder}/crawl; what should become of each pair: {folder}/truth.jsonl", highlight=False)
    out.print(f"serve it: python -m curation.demo_crawl.server {folder} --port 8099", highlight=False)


@app.command("index-evalset")
def index_evalset(
    name: Annotated[str, typer.Argument(help="Name that recipes use: stages.leakage.evalsets.")],
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of pictures.")],
    store: StoreRoot = DEFAULT_STORE,
) -> None:
    """Index the pictures of an evaluation set, so that leakage can find them in the crawl."""
    from curation.evalsets import index_folder
    from curation.store import Store

    with err.status("hashing pictures"):
        key = index_folder(Store(store), name, folder)
    out.print(f"{name}: {key}", highlight=False)


@app.command()
def verify(
    recipe: Annotated[str, typer.Argument(help="Recipe of the dataset.")],
    version: Annotated[str, typer.Argument(help="Version, or latest.")] = "latest",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Check every file of a published version against its manifest."""
    from curation.publish.version import verify as problems_of
    from curation.store import Store

    root = Store(store)
    if version == "latest":
        version = json.loads(root.read_bytes(f"datasets/{recipe}/latest.json"))["version"]
    with err.status(f"reading {version}"):
        problems = problems_of(root, recipe, version)
    if as_json:
        typer.echo(json.dumps({"version": version, "problems": problems}))
    else:
        out.print(Text("\n".join(problems) or f"{version}: whole"))
    if problems:
        raise typer.Exit(1)


recipes = typer.Typer(no_args_is_help=True, help="List, show and check recipes.")
app.add_typer(recipes, name="recipes")


@recipes.command("list")
def recipes_list() -> None:
    """Names and descriptions of the recipes that come with the package."""
    from curation.recipe import load_recipe, recipe_names

    for name in recipe_names():
        out.print(Text(f"{name:20} {load_recipe(name).description}"))


@recipes.command("show")
def recipes_show(recipe: Annotated[str, typer.Argument(help="Name or path of a .yaml file.")]) -> None:
    """Every setting of a recipe, defaults spelt out, as YAML."""
    from curation.recipe import load_recipe

    typer.echo(
        yaml.safe_dump(load_recipe(recipe).model_dump(mode="json", exclude_none=True), sort_keys=False), nl=False
    )


@recipes.command("validate")
def recipes_validate(recipe: Annotated[str, typer.Argument(help="Name or path of a .yaml file.")]) -> None:
    """Check a recipe without running it: exit code 2 and the field's name when something is wrong."""
    from curation.recipe import load_recipe

    load_recipe(recipe)
    out.print(f"{recipe}: valid", highlight=False)


def _overrides(settings: list[str]) -> dict[str, Any]:
    overrides = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: give name=value, such as gates.too_small.at_least=128")
        overrides[name] = yaml.safe_load(value)
    return overrides


def _opened(root: str, dump: str, recipe: str | None) -> Any:
    from curation import block as blocks
    from curation import dumps
    from curation.pipeline import saved_recipe
    from curation.store import Store

    store = Store(root)
    pinned = saved_recipe(store, blocks.recipe_key(store, dump, recipe))
    return store, pinned, range(len(dumps.archives_of(store, dump, pinned.stages.extract.archive)))


def _run_stage(root: Any, pinned: Any, dump: str, name: str, shard: int) -> Any:
    from curation.runner import run_stage

    return run_stage(root, pinned, dump, shard, name)


def _progress() -> Progress:
    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=err)


def _each_shard(
    progress: Progress,
    steps: list[tuple[str, Callable[[int], Any]]],
    shards: list[int],
    workers: int,
    failed: dict[int, str],
) -> None:
    """Take each shard through the steps; one that fails is noted and the others go on."""
    bars = {name: progress.add_task(name, total=len(shards)) for name, _ in steps}

    def take(shard: int) -> None:
        for name, step in steps:
            try:
                step(shard)
            except ConfigError:
                raise
            except CurationError as problem:
                failed[shard] = str(problem)
                return
            progress.advance(bars[name])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(take, shards))

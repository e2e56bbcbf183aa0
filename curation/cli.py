"""The `curation` command: the same graph as the DAGs, on one machine, without Airflow."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curation.cli_captions import app as captions
from curation.cli_datasets import add_to
from curation.cli_evalsets import add_evalsets_to
from curation.cli_models import app as models
from curation.cli_recipes import (
    AsJson,
    PageToWrite,
    RecipeOrFile,
    Settings,
    StoreRoot,
    parse_settings,
    place_for_a_file,
    recipes,
)
from curation.cli_training import add_training_to
from curation.cli_video import video
from curation.errors import ConfigError, CurationError

if TYPE_CHECKING:  # the rest is imported by the command that needs it: --help is there at once
    from curation.recipe import Recipe
    from curation.reports.funnel import Funnel
    from curation.reports.life import Life
    from curation.store import Store

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Common Crawl dumps in, versioned image-text datasets out.\n\n"
    "Try it: `curation demo-crawl var/my-crawl`, and do what it prints; then `curation inspect var/store demo` and "
    "`curation why <url> --dump demo`.\n\n"
    "Exit codes: 0 all is well; 1 shards failed or a problem was found; 2 wrong settings or usage.",
)
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

DEFAULT_STORE = "var/store"
RecipeName = Annotated[str | None, typer.Option("--recipe", help="Needed where several recipes ran on the dump.")]


def main() -> None:
    """Entry point: errors of ours become one clear line and an exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s")
    # on a terminal bars tell how far it is, in a log lines do
    level = os.environ.get("CURATION_LOG", "WARNING" if err.is_terminal else "INFO")
    logging.getLogger("curation").setLevel(level.upper())
    try:
        app()
    except CurationError as problem:
        _say(str(problem), "red")
        sys.exit(2 if isinstance(problem, ConfigError) else 1)


@app.command()
def run(
    recipe: RecipeOrFile,
    dump: Annotated[str, typer.Option(help="Name of the crawl; Common Crawl's own, or one that you choose.")],
    source: Annotated[
        str,
        typer.Option(
            help="Folder, glob or s3:// prefix of WAT or WARC files, or a .yaml of annotated sets; empty: Common Crawl."
        ),
    ] = "",
    shards: Annotated[str, typer.Option(help="Numbers and ranges, such as 0-3,7; empty: the whole block.")] = "",
    block: Annotated[int, typer.Option(help="Which thousand of shards, from 0.")] = 0,
    store: StoreRoot = DEFAULT_STORE,
    settings: Settings = None,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="Shards at a time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Run a recipe on a dump, from archive to dataset version.

    What is done already is not done again: after a failure or a change of settings run the same command again.

    A shard that fails does not stop the others, up to the step that needs the whole block (dedup's match, publish).

    * `curation run demo --dump mine --source crawl/ --set stages.leakage.evalsets=[]`

    * `curation run laion-5b-en --dump CC-MAIN-2026-05 --shards 0-3 --workers 2 --store s3://bucket/curation`
    """
    from curation.block import parse_shards, plan
    from curation.local import run_block
    from curation.pipeline import saved_recipe
    from curation.progress_bars import Bars
    from curation.publish.release import held_back
    from curation.recipe import load_recipe
    from curation.reports.funnel import funnel, render
    from curation.store import Store

    root, loaded = Store(store), load_recipe(recipe, parse_settings(settings))
    if until and until not in loaded.stage_names:
        raise ConfigError(f"--until {until}: the recipe runs {', '.join(loaded.stage_names)}")
    planned = plan(root, loaded, dump, source, block=block, shards=parse_shards(shards))
    pinned = saved_recipe(root, planned.recipe_key)
    with Bars(err) as bars:
        outcome = run_block(root, pinned, planned, bars, until=until, workers=workers)
    found = funnel(root, pinned, dump, planned.shards)
    held = held_back(root, outcome.manifest)
    if as_json:
        _print_json(found.to_json() | {"manifest": outcome.manifest, "held": held, "failed": outcome.failed})
    else:
        out.print(render(found))
        if outcome.manifest:
            out.print(f"dataset version: {root.root}/{outcome.manifest.rpartition('/')[0]}", highlight=False)
    for reason in held:
        _say(f"held, latest does not move: {reason}", "yellow")
    for problem in outcome.failed.values():
        _say(problem, "red")
    if outcome.failed:
        _say(f"{len(outcome.failed)} of {len(planned.shards)} shards failed; run again to try them again", "red")
        raise typer.Exit(1)


@app.command()
def retry(
    root: Annotated[str, typer.Argument(help="Store: local folder or s3://bucket/prefix.")],
    dump: Annotated[str, typer.Argument(help="Name of the crawl.")],
    recipe: RecipeName = None,
    shards: Annotated[str, typer.Option(help="Numbers and ranges, such as 0-3,7; empty: every downloaded one.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="Shards at a time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Fetch again what may heal: timeouts, unreachable hosts, 429, 5xx, what a deadline or a budget cut off.

    Each shard gets a new generation of its download table, where anything healed; what is gone or refused is not asked
    again. Then run the same `curation run` (or DAG) as before: what depends on the renewed tables is made anew.

    * `curation retry var/store demo`
    """
    from curation.block import parse_shards
    from curation.retry import retry_shards

    store, pinned, every = _opened(root, dump, recipe)
    with err.status("fetching again what may heal"):
        outcome = retry_shards(store, pinned, dump, parse_shards(shards) or every, workers=workers)
    if as_json:
        _print_json({"healed": outcome.healed, "failed": outcome.failed})
    else:
        total = sum(outcome.healed.values())
        told = f"{total} pictures healed in {sum(map(bool, outcome.healed.values()))} of {len(outcome.healed)} shards"
        out.print(Text(f"{told}; run the recipe again to take them on" if total else told))
    for problem in outcome.failed.values():
        _say(problem, "red")
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def inspect(
    root: Annotated[str, typer.Argument(help="Store: local folder or s3://bucket/prefix.")],
    dump: Annotated[str, typer.Argument(help="Name of the crawl.")],
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> None:
    """Show the funnel of a dump and how far each shard is.

    * `curation inspect var/store demo`
    """
    from curation.reports.funnel import funnel, render

    store, pinned, shards = _opened(root, dump, recipe)
    with err.status("reading receipts"):
        found = funnel(store, pinned, dump, shards)
    if as_json:
        _print_json(found.to_json())
    else:
        out.print(render(found))
        out.print(_states(found))


@app.command()
def why(
    query: Annotated[str, typer.Argument(help="Picture URL, sample_id, or a piece of the caption.")],
    dump: Annotated[str, typer.Option(help="Name of the crawl.")],
    store: StoreRoot = DEFAULT_STORE,
    recipe: RecipeName = None,
    limit: Annotated[int, typer.Option(min=1, help="Tell of at most so many samples.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Tell the life of a sample through all stages: what was measured, where it was dropped and why.

    * `curation why http://photos.demo.test/cat.jpg --dump demo`

    * `curation why "tabby cat" --dump demo`
    """
    from itertools import islice

    from curation.reports.life import lives

    if not query.strip():
        raise ConfigError("why: give a picture's URL, a sample_id or a piece of the caption")
    root, pinned, shards = _opened(store, dump, recipe)
    with err.status("looking through the shards"):
        found = list(islice(lives(root, pinned, dump, shards, query), limit + 1))
    if as_json:
        _print_json([life.to_json() for life in found[:limit]])
    else:
        for life in found[:limit]:
            _tell(life)
    if len(found) > limit:
        _say(f"there are more than {limit}; ask for more: --limit", "yellow")
    if not found:
        _say(f"{query}: in no shard of {dump} that recipe {pinned.name} has read", "yellow")
        raise typer.Exit(1)


@app.command()
def cost(
    dump: Annotated[str, typer.Argument(help="Name of the crawl.")],
    cpu_hour: Annotated[
        float, typer.Option(envvar="CURATION_PRICE_CPU_HOUR", help="Of a slot of the queue default.")
    ] = 0.0,
    gpu_hour: Annotated[
        float, typer.Option(envvar="CURATION_PRICE_GPU_HOUR", help="Of a slot of the queue gpu.")
    ] = 0.0,
    gb_month: Annotated[float, typer.Option(envvar="CURATION_PRICE_GB_MONTH", help="To keep 1e9 bytes.")] = 0.0,
    gb_fetched: Annotated[float, typer.Option(envvar="CURATION_PRICE_GB_FETCHED", help="To fetch 1e9 bytes.")] = 0.0,
    store: StoreRoot = DEFAULT_STORE,
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> None:
    """Price what a dump has taken so far, from the seconds in its receipts, also per million samples.

    Prices are yours, in any currency; an hour is that of one task's slot: a machine's price divided by its tasks.

    * `curation cost CC-MAIN-2026-05 --cpu-hour 0.05 --gpu-hour 2.50 --gb-month 0.023`
    """
    from pydantic import ValidationError

    from curation.reports.cost import Prices
    from curation.reports.cost import cost as priced
    from curation.reports.funnel import funnel

    try:
        prices = Prices(cpu_hour=cpu_hour, gpu_hour=gpu_hour, gb_month=gb_month, gb_fetched=gb_fetched)
    except ValidationError as problem:
        wrong = problem.errors()[0]
        raise ConfigError(f"--{str(wrong['loc'][0]).replace('_', '-')}: {wrong['msg']}") from None
    root, pinned, shards = _opened(store, dump, recipe)
    with err.status("reading receipts"):
        found = priced(funnel(root, pinned, dump, shards), pinned, prices)
    if as_json:
        _print_json(found)
        return
    table = Table(title=f"{dump}: {found['cost']:.2f} so far, {found['a_month']:.2f} a month to keep it")
    for heading in ("stage", "hours", "cost"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for row in found["stages"]:
        table.add_row(row["stage"], f"{row['hours']:.2f}", f"{row['cost']:.2f}")
    out.print(table)
    for of, price in found["cost_per_million"].items():
        month = found["a_month_per_million"][of]
        told = "none yet" if price is None else f"{price:.2f}, and {month:.2f} a month"
        out.print(Text(f"per million samples {of}: {told}"))


@app.command("demo-crawl")
def demo_crawl(
    folder: Annotated[Path, typer.Argument(help="Where to build it.")],
    shards: Annotated[int, typer.Option(min=1, max=64, help="WARC and WAT files to split it into.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Build a small hostile web site of real photographs and crawl it into WARC and WAT files.

    * `curation demo-crawl var/my-crawl`
    """
    from curation.demo_crawl.build import build_demo_crawl

    with err.status("building the site and crawling it"):
        build_demo_crawl(folder, shards=shards)
    if as_json:
        _print_json({"crawl": str(folder / "crawl"), "truth": str(folder / "truth.jsonl"), "shards": shards})
        return
    for line in (
        f"crawl: {folder}/crawl; what should become of each pair: {folder}/truth.jsonl",
        "serve it, and in another terminal take it through the demo recipe:",
        f"  python -m curation.demo_crawl.server {folder} --port 8099",
        f"  curation index-evalset demo-eval {folder}/evalset",
        f"  curation run demo --dump demo --source {folder}/crawl "
        '--set \'stages.download.connect_to={"*.test": "127.0.0.1:8099"}\' '
        f"--set stages.extract.blocklist={folder}/blocklist.txt "
        f"--set stages.safety.known_hashes={folder}/known_unsafe.txt",
    ):
        out.print(Text(line))


@app.command("refresh-blocklist")
def refresh_blocklist(
    name: Annotated[str, typer.Argument(help="Name of the list: recipes take blocklists/NAME.")],
    sources: Annotated[list[str], typer.Argument(help="Files or addresses of lists, gzip or not.")],
    max_loss: Annotated[float, typer.Option(min=0, max=1, help="Largest share of its lines that it may lose.")] = 0.5,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Put a blocklist into the store, or replace it, as a whole or not at all.

    * `curation refresh-blocklist adult https://lists.example/adult.txt.gz ours.txt`
    """
    from curation.blocklists import refresh_blocklist as refresh
    from curation.store import Store

    with err.status("fetching"):
        done = refresh(Store(store), name, sources, max_loss=max_loss)
    if as_json:
        _print_json(done._asdict())
    else:
        out.print(f"blocklists/{name}: {done.rules} rules, {done.added} lines new, {done.removed} gone")


@app.command()
def verify(
    recipe: Annotated[str, typer.Argument(help="Recipe of the dataset.")],
    version: Annotated[str, typer.Argument(help="Version, or latest.")] = "latest",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Check every file of a published version against its manifest, size and sha256.

    * `curation verify demo`
    """
    from curation.publish.verify import read_manifest
    from curation.publish.verify import verify as problems_of
    from curation.store import Store

    root = Store(store)
    manifest = read_manifest(root, recipe, version)
    with err.status(f"reading {len(manifest['files'])} files"):
        problems = problems_of(root, recipe, manifest["version"])
    if as_json:
        _print_json({"version": manifest["version"], "problems": problems})
    else:
        out.print(Text("\n".join(problems) or f"{manifest['version']}: {len(manifest['files'])} files, whole"))
    if problems:
        raise typer.Exit(1)


@app.command()
def calibrate(
    dump: Annotated[str, typer.Option(help="Dump whose scores to go by; its recipe names the model.")] = "",
    keep: Annotated[float, typer.Option(help="Share of each group to keep, such as 0.3.")] = 0.0,
    pairs: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSONL of image, text, label; or of score, label.")
    ] = None,
    precision: Annotated[float, typer.Option(help="Share of what is kept that must be right.")] = 0.0,
    model: Annotated[str, typer.Option(help="CLIP model that scores the pairs.")] = "embedded",
    pretrained: Annotated[str | None, typer.Option(help="Its weights: open_clip tag or file.")] = None,
    column: Annotated[str, typer.Option(help="Score of the dump to find thresholds for.")] = "similarity",
    by: Annotated[
        str, typer.Option(help="Column whose values get a threshold each; empty: one for all.")
    ] = "partition",
    plot: Annotated[Path | None, typer.Option(callback=place_for_a_file, help="Write a chart: an .svg file.")] = None,
    store: StoreRoot = DEFAULT_STORE,
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> None:
    """Find the threshold of a model: from a share to keep of a dump, or from a precision on labelled pairs.

    * `curation calibrate --dump demo --keep 0.3 --plot var/similarity.svg`

    * `curation calibrate --pairs labelled.jsonl --precision 0.95 --model ViT-B-32 --pretrained laion2b_s34b_b79k`
    """
    from curation.reports.calibrate import calibrate_keep, calibrate_precision, score_pairs, scores_of_dump

    if bool(dump and keep) == bool(pairs and precision):
        raise ConfigError("calibrate: give --dump with --keep, or --pairs with --precision")
    if pairs:
        found = calibrate_precision(*score_pairs(pairs, model, pretrained), precision, column)
    else:
        root, pinned, shards = _opened(store, dump, recipe)
        found = calibrate_keep(scores_of_dump(root, pinned, dump, shards, column, by), keep, column)
    if plot:
        plot.write_text(found.svg)
    if as_json:
        _print_json(found.to_json())
        return
    for one in found.thresholds:
        sure = f", precision {one.precision:.3f}, recall {one.recall:.3f}" if one.precision is not None else ""
        out.print(Text(f"{one.group:8} {one.threshold:.4f}  keeps {one.kept:.1%} of {one.samples}{sure}"))


@app.command()
def audit(
    dump: Annotated[str, typer.Argument(help="Name of the crawl.")],
    page: PageToWrite,
    concepts: Annotated[Path | None, typer.Option(exists=True, help="YAML of concept groups and their words.")] = None,
    styles: Annotated[
        bool, typer.Option(help="Tell picture styles by the recipe's CLIP; not by the embedded one.")
    ] = True,
    store: StoreRoot = DEFAULT_STORE,
    recipe: RecipeName = None,
) -> None:
    """Show whom the filters let through: by language, domain, concept, picture style and resolution.

    * `curation audit demo --out var/audit.html`
    """
    from curation.reports.audit import Audit, read_concepts, render_page
    from curation.reports.audit import audit as audited

    root, pinned, shards = _opened(store, dump, recipe)
    found = Audit(pinned, read_concepts(concepts.read_text(), str(concepts)) if concepts else None)
    if styles and pinned.stages.score and pinned.stages.score.english.embedding_space != "embedded":
        found.see_styles()  # the embedded model knows photographs alone: it takes most of them for texts and logos
    with err.status("counting outcomes"):
        data = audited(root, pinned, dump, shards, found).to_json()
    page.write_text(render_page(data))
    page.with_suffix(".json").write_text(json.dumps(data, ensure_ascii=False))
    out.print(Text(f"{page}, {page.with_suffix('.json')}"))


@app.command()
def leakage(
    dump: Annotated[str, typer.Argument(help="Name of the crawl.")],
    page: PageToWrite,
    store: StoreRoot = DEFAULT_STORE,
    recipe: RecipeName = None,
) -> None:
    """Show what hit each evaluation set: items hit, and samples beside the items that they are.

    * `curation leakage demo --out var/leakage.html`
    """
    from curation.reports.leakage import leakage_report, render_leakage

    root, pinned, shards = _opened(store, dump, recipe)
    with err.status("reading hits"):
        data = leakage_report(root, pinned, dump, shards)
    page.write_text(render_leakage(data))
    page.with_suffix(".json").write_text(json.dumps(data, ensure_ascii=False))
    for found in data["sets"]:
        told = f"{found['items_hit']} of {found['items']} items hit by {found['samples']} samples, {found['kept']} kept"
        out.print(Text(f"{found['name']}: {told}"))
    out.print(Text(f"{page}, {page.with_suffix('.json')}"))


@app.command()
def quarantine(
    dump: Annotated[str, typer.Argument(help="Name of the crawl.")],
    store: StoreRoot = DEFAULT_STORE,
    recipe: RecipeName = None,
    as_json: AsJson = False,
) -> None:
    """List what safety holds back, for review: nothing is deleted, and what is cleared comes back.

    Put the ids of samples that are fine into a file, one a line, and run again with
    `--set stages.safety.cleared=FILE`.

    * `curation quarantine demo --json > held.jsonl`
    """
    from curation.reports.safety import held

    root, pinned, shards = _opened(store, dump, recipe)
    counts: dict[str, int] = {}
    for row in held(root, pinned, dump, shards):
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
        if as_json:
            _print_json(row)
        else:
            out.print(Text(f"{row['sample_id']}  {row['verdict']:12} {row['safety_reason'] or ''}  {row['url']}"))
    _say(", ".join(f"{verdict}: {count}" for verdict, count in counts.items()) or "nothing is held back", "yellow")


@app.command("evaluate-safety")
def evaluate_safety(
    features: Annotated[Path, typer.Argument(exists=True, help="Parquet: label, and punsafe or img_emb.")],
    head: Annotated[str, typer.Option(help="Head that reads img_emb, such as LAION's .zip.")] = "",
    space: Annotated[str, typer.Option(help="Embedding space of img_emb, such as ViT-L-14/openai.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print precision and recall of punsafe on samples that people labelled.

    * `curation evaluate-safety labelled.parquet --head clip_autokeras_binary_nsfw.zip --space ViT-L-14/openai`
    """
    from curation.reports.safety import evaluate

    if bool(head) != bool(space):
        raise ConfigError("evaluate-safety: --head and --space go together")
    found = evaluate(features, head, space)
    if as_json:
        _print_json(found)
        return
    table = Table(title=f"{found['unsafe']} unsafe of {found['samples']} samples, AUC {found['auc']:.4f}")
    for heading in ("above", "taken", "precision", "95 %", "recall", "95 %", "false positives"):
        table.add_column(heading, justify="right")
    for point in found["points"]:
        spans = [f"{point[name][0]:.3f}-{point[name][1]:.3f}" for name in ("precision_95", "recall_95")]
        numbers = f"{point['precision']:.3f}", spans[0], f"{point['recall']:.3f}", spans[1]
        table.add_row(f"{point['threshold']:g}", str(point["taken"]), *numbers, f"{point['false_positive_rate']:.3%}")
    out.print(table)


add_to(app)
add_evalsets_to(app)
app.command()(video)

app.add_typer(recipes, name="recipes")
add_training_to(captions)
app.add_typer(captions, name="captions")
app.add_typer(models, name="models")


def _opened(root: str, dump: str, recipe: str | None) -> tuple[Store, Recipe, range]:
    from curation import dumps
    from curation.block import recipe_key
    from curation.pipeline import saved_recipe
    from curation.store import Store

    store = Store(root)
    pinned = saved_recipe(store, recipe_key(store, dump, recipe))
    return store, pinned, range(len(dumps.archives_of(store, dump, pinned.stages.extract.archive)))


def _states(found: Funnel) -> Table:
    table = Table(title="shards by the last stage that is done")
    table.add_column("stage")
    table.add_column("shards", justify="right")
    table.add_column("numbers", overflow="fold")
    for stage in ("", *(counts.stage for counts in found.stages)):
        numbers = [shard for shard, state in found.shards.items() if state == stage]
        if numbers:
            table.add_row(stage or "nothing yet", str(len(numbers)), _ranges(numbers))
    return table


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 7] -> "0-2,7", as --shards takes it."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _tell(life: Life) -> None:
    line = f"{life.sample_id} in shard {life.shard:05d}: {life.outcome}"
    told = f"{line} after {life.stage}: {life.because}" if life.because else line
    out.print(Text(told, style="green" if life.outcome == "kept" else "yellow"))
    for stage, values in life.measured.items():
        by = ", ".join(f"{role} {identity}" for role, identity in life.models.get(stage, {}).items())
        out.print(Text(f"  {stage}" + (f" by {by}" if by else "")))
        for name, value in values.items():
            if value is not None:
                out.print(Text(f"    {name:20} {f'{value:.4g}' if isinstance(value, float) else value}"))
    if life.versions:
        out.print(Text(f"  in {', '.join(life.versions)}"))


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))


def _say(text: str, style: str) -> None:
    err.print(Text(text, style=style))

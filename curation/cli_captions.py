"""Commands about captions: `curation captions ...`."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from curation.errors import ConfigError

if TYPE_CHECKING:
    from curation.captions.endpoint import Asker, Endpoint

app = typer.Typer(no_args_is_help=True, help="Teachers, students and what they are given.")
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


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
    from curation.captions.teaching import parse_bars
    from curation.pipeline import saved_recipe
    from curation.store import Store

    bars = parse_bars(at_least or ["similarity=0.3"], "--at-least")
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


@app.command()
def ask(
    seed_set: Annotated[str, typer.Argument(help="Name of the seed set.")],
    endpoint: Annotated[str, typer.Option(metavar="URL#MODEL", help="Teacher, such as http://host:8000/v1#model.")],
    name: Annotated[str, typer.Option(help="Of the captions; left out: the seed set's.")] = "",
    prompt: Annotated[str, typer.Option(help="en or zh (six-point detailed description), or a text file.")] = "en",
    batch: Annotated[bool, typer.Option("--batch", help="By the batch API: cheaper, within a day.")] = False,
    max_money: Annotated[float | None, typer.Option(min=0, help="Cap, in the currency of the prices.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=0, help="Cap of prompt and completion tokens.")] = None,
    price_prompt: Annotated[float, typer.Option(min=0, help="Of a million prompt tokens.")] = 0,
    price_completion: Annotated[float, typer.Option(min=0, help="Of a million completion tokens.")] = 0,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of an endpoint.")
    ] = None,
    poll: Annotated[float, typer.Option(min=0.01, help="Seconds between two looks at a batch.")] = 60,
    store: Annotated[str, typer.Option(envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")] = "var/store",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")] = False,
) -> None:
    """Ask a teacher to describe a seed set, within caps; run again to go on: no picture is paid for twice.

    Exit code 1 when pictures were left without an answer: a cap was reached, or every attempt failed.

    * `curation captions ask first --endpoint https://host/v1#m --max-money 50 --price-prompt 2.5 --price-completion 10`
    * `curation captions ask first --endpoint http://127.0.0.1:8000/v1#llava --prompt zh --set concurrency=32`
    """
    from curation.block import recipe_key
    from curation.captions.asking import ask_seed_set, read_seed_set
    from curation.captions.costs import of_teacher
    from curation.pipeline import saved_recipe
    from curation.store import Store

    root = Store(store)
    asked = _endpoint(
        endpoint, setting, prompt=prompt, max_money=max_money, max_total_tokens=max_tokens,
        price_prompt=price_prompt, price_completion=price_completion,
    )  # fmt: skip
    seeds = read_seed_set(root, seed_set)
    pinned = saved_recipe(root, recipe_key(root, seeds.dump, seeds.recipe))
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=err) as progress:
        bar = progress.add_task(f"{asked.model}", total=len(seeds))

        def told(outcomes: Counter[str], asker: Asker) -> None:
            spent = f"{asker.budget.spent_tokens:,} tokens, {asker.budget.spent_money:.4f}"
            left = f", {max_money - asker.budget.spent_money:.4f} left" if max_money is not None else ""
            progress.update(bar, completed=outcomes.total(), description=f"{asked.model}: {spent}{left}")

        made = ask_seed_set(root, pinned, seeds, asked, name or seed_set, batch=batch, poll_s=poll, told=told)
    cost = of_teacher(made, asked) if made.captions else None
    if as_json:
        told_json = {**vars(made), "whole": made.whole, "cost": cost._asdict() if cost else None}
        typer.echo(json.dumps(told_json, ensure_ascii=False))
    else:
        ended = ", ".join(f"{count} {outcome}" for outcome, count in made.outcomes.items())
        out.print(Text(f"{len(seeds)} pictures: {ended}; {made.cached} answers were there: {root.root}/{made.key}"))
        out.print(Text(f"{made.tokens:,} tokens, {made.money:.4f} in all"))
        if cost:
            out.print(Text(f"{cost.per_caption:.6f} a caption, {cost.per_million:,.2f} a million captions"))
    if not made.whole:
        raise typer.Exit(1)


@app.command()
def cost(
    teacher: Annotated[str, typer.Option(help="Captions of `curation captions ask`, by name: what they cost.")] = "",
    tokens: Annotated[
        str, typer.Option(metavar="PROMPT,COMPLETION", help="Estimate for a teacher that was not asked.")
    ] = "",
    price_prompt: Annotated[float, typer.Option(min=0, help="With --tokens: of a million prompt tokens.")] = 0,
    price_completion: Annotated[float, typer.Option(min=0, help="With --tokens: of a million completion tokens.")] = 0,
    batch: Annotated[bool, typer.Option("--batch", help="With --tokens: by the batch API, at half the price.")] = False,
    dump: Annotated[str, typer.Option(help="Student: a dump that it captioned; its rate is measured there.")] = "",
    recipe: Annotated[str | None, typer.Option(help="Needed where several recipes ran on the dump.")] = None,
    captions_per_second: Annotated[float, typer.Option(min=0, help="Student: in the place of --dump.")] = 0,
    price_per_hour: Annotated[float, typer.Option(min=0, help="Student: of the machine that one task takes.")] = 0,
    store: Annotated[str, typer.Option(envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")] = "var/store",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")] = False,
) -> None:
    """Tell what a million captions cost: a teacher by tokens, a student by captions a second and the machine's price.

    * `curation captions cost --teacher first --dump CC-MAIN-2026-05 --price-per-hour 2.2`
    * `curation captions cost --tokens 1200,230 --price-prompt 2.5 --price-completion 10`
    * `curation captions cost --captions-per-second 40 --price-per-hour 2.2`
    """
    from curation import dumps
    from curation.block import recipe_key
    from curation.captions import costs
    from curation.captions.asking import read_taught
    from curation.captions.endpoint import Endpoint
    from curation.pipeline import saved_recipe
    from curation.store import Store

    root = Store(store)
    found: list[costs.Cost] = []
    if teacher:
        found.append(costs.of_teacher(*read_taught(root, teacher)))
    if tokens:
        try:
            prompt_tokens, completion_tokens = map(float, tokens.split(","))
        except ValueError:
            raise ConfigError(f"--tokens {tokens}: expected two numbers, such as 1200,230") from None
        priced = Endpoint(
            url="http://priced", model="estimate", price_prompt=price_prompt, price_completion=price_completion
        )
        found.append(costs.of_tokens(priced, prompt_tokens, completion_tokens, batch=batch))
    if dump:
        pinned = saved_recipe(root, recipe_key(root, dump, recipe))
        shards = range(len(dumps.archives_of(root, dump, pinned.stages.extract.archive)))
        rate = costs.captioning_rate(root, pinned, dump, shards)
        found.append(costs.of_student(rate, price_per_hour, basis=f"measured on {dump}, the filter's work included"))
    elif captions_per_second:
        found.append(costs.of_student(captions_per_second, price_per_hour))
    if not found:
        raise ConfigError("name a teacher (--teacher or --tokens) or a student (--dump or --captions-per-second)")
    if as_json:
        typer.echo(json.dumps([one._asdict() for one in found], ensure_ascii=False))
        return
    for one in found:
        out.print(
            Text(f"{one.who}: {one.per_million:,.2f} a million captions, {one.per_caption:.6f} each ({one.basis})")
        )


@app.command("train-matcher")
def train_matcher(
    name: Annotated[str, typer.Argument(help="Of the filter in the registry.")],
    records: Annotated[str, typer.Argument(help="Key of the records with captions by people to learn from.")],
    held_out: Annotated[str, typer.Option(help="Key of the records that it is measured on.")],
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="matcher, epochs, learning_rate, ...")
    ] = None,
    captioner: Annotated[str, typer.Option(help="Whose captions it shall judge: no weights in common.")] = "",
    margin: Annotated[float | None, typer.Option(min=0, help="Least gain in ITM AUC for a promotion.")] = None,
    by: Annotated[str, typer.Option(help="Who does it; it stays in the history.")] = "curation captions train-matcher",
    store: Annotated[str, typer.Option(envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")] = "var/store",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")] = False,
) -> None:
    """Train CapFilt's filter on captions by people, measure it on held-out ones, promote it where it is better.

    * `curation captions train-matcher filter captions/records/0123456789abcdef.arrow --held-out captions/records/...`
    """
    from pydantic import ValidationError

    from curation.captions import registry
    from curation.captions.matching import Job, Matching, evaluate_version, train_version
    from curation.captions.records import Records
    from curation.store import Store

    root = Store(store)
    try:
        settings = Matching.model_validate(dict(one.split("=", 1) for one in setting or []))
    except ValidationError as problem:
        first = problem.errors()[0]
        raise ConfigError(f"--set {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError:
        raise ConfigError("--set: expected NAME=VALUE, such as epochs=2") from None
    measured_on = Records(root, held_out)
    if measured_on.digest == Records(root, records).digest:
        raise ConfigError("--held-out: these are the records that it learns from")
    made = train_version(Job(store=root.root, name=name, records=records, settings=settings), captioner=captioner)
    found = evaluate_version(root, name, made.version, measured_on, device=settings.device)
    verdict = registry.judge(root, name, made.version, margin=margin, held_out=measured_on.digest)
    if verdict.better:
        registry.promote(root, name, made.version, margin=margin, held_out=measured_on.digest, by=by)
    told = {"name": name, "version": made.version, "metrics": found.metrics, "beside": found.beside}
    if as_json:
        typer.echo(json.dumps(told | {"promoted": verdict.better, "reason": verdict.reason}))
    else:
        out.print(Text(f"{name}@{made.version}, {'promoted' if verdict.better else 'not promoted'}: {verdict.reason}"))


def _endpoint(address: str, settings: list[str] | None, **options: Any) -> Endpoint:
    from pydantic import ValidationError

    from curation.captions.endpoint import Endpoint

    url, _, model = address.partition("#")
    for one in settings or []:
        field, _, value = one.partition("=")
        options[field] = value
    try:
        asked = Endpoint(url=url, model=model, **options)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"]))
        place = {"url": "--endpoint", "model": "--endpoint URL#MODEL"}.get(place, place)
        raise ConfigError(f"{place}: {first['msg']}, found {first['input']!r}") from None
    assert asked.text  # a prompt that is not there stops here
    return asked

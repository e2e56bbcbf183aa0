"""Commands of human evaluation: review sample, rate, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from curation.errors import ConfigError

out = Console(soft_wrap=True)
review = typer.Typer(no_args_is_help=True, help="Human evaluation of a version: draw samples, rate them, report.")

StoreRoot = Annotated[str, typer.Option("--store", envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")]
RecipeArgument = Annotated[str, typer.Argument(help="Recipe of the dataset.")]
VersionArgument = Annotated[str, typer.Argument(help="Version, or latest.")]
SetName = Annotated[str, typer.Option("--set", help="Name of the review set.")]
Score = Annotated[int | None, typer.Option(min=1, max=5, help="1 to 5; left out: can't be judged.")]
DEFAULT_STORE = "var/store"


@review.command()
def sample(
    recipe: RecipeArgument,
    version: VersionArgument,
    n: Annotated[int, typer.Option("-n", "--n", min=1, max=10_000, help="Samples to look at.")] = 200,
    by: Annotated[
        list[str] | None, typer.Option(help="Strata: language, partition, domain, similarity; give each.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws others.")] = 0,
    raters: Annotated[int, typer.Option(min=1, max=50, help="People who shall rate each sample.")] = 2,
    name: SetName = "review",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Draw a stratified sample of a version, the same for the same seed.

    * `curation review sample laion-400m latest -n 200 --by language --by similarity`
    """
    from pydantic import ValidationError

    from curation.review.sets import Sampling, create_set
    from curation.store import Store

    chosen = {} if by is None else {"by": tuple(by)}
    try:
        sampling = Sampling.model_validate({"n": n, "seed": seed, "raters": raters} | chosen)
    except ValidationError as err:
        raise ConfigError(f"--by: {err.errors()[0]['msg']}") from None
    made = create_set(Store(store), recipe, version, sampling, name)
    if as_json:
        typer.echo(made.model_dump_json(indent=1))
    else:
        out.print(Text(f"{len(made.items)} samples of {len(made.strata)} strata: {recipe}/{made.version}, set {name}"))


@review.command()
def rate(
    recipe: RecipeArgument,
    version: VersionArgument,
    rater: Annotated[str, typer.Option(help="Who rates.")],
    item: Annotated[int | None, typer.Option(min=0, help="Number of the item; left out: show the next one.")] = None,
    accuracy: Score = None,
    completeness: Score = None,
    detail: Score = None,
    relevance: Score = None,
    comment: Annotated[str, typer.Option(help="Anything to say.")] = "",
    picture: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the shown picture there.")] = None,
    name: SetName = "review",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show a rater's next item, or keep what he says of one; a later rating of the same item replaces the earlier.

    * `curation review rate laion-400m latest --rater ada --picture next.jpg`

    * `curation review rate laion-400m latest --rater ada --item 7 --accuracy 4 --completeness 3 --detail 3`
    """
    from curation.review import ratings, sets
    from curation.store import Store

    root = Store(store)
    found = sets.read_set(root, recipe, version, name)
    if item is not None:
        scores = {"accuracy": accuracy, "completeness": completeness, "detail": detail, "relevance": relevance}
        kept = ratings.rate(root, found, {"rater": rater, "item": item, "comment": comment, **scores})
        told: dict[str, Any] = kept.model_dump()
        text = f"item {item} rated; {_left(ratings.progress(root, found))}"
    elif (number := ratings.next_item(root, found, rater)) is None:
        told, text = {"item": None}, f"nothing is left for {rater}; {_left(ratings.progress(root, found))}"
    else:
        shown = sets.read_item(root, found, number)
        if picture:
            picture.write_bytes(shown.picture)
        told = {
            "item": number,
            "sample_id": shown.item.sample_id,
            "caption": shown.caption,
            "url": shown.described["url"],
        }
        text = f"item {number}: {shown.caption}\n{shown.described['url']}"
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        out.print(Text(text))


@review.command()
def report(
    recipe: RecipeArgument,
    version: VersionArgument,
    name: SetName = "review",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Means with 95 % intervals and agreement; kept beside the version. `latest` moves when nothing else holds it.

    * `curation review report laion-400m 2026.11.01-ab12cd34`
    """
    from curation.publish.version import move_latest
    from curation.review.report import write_report
    from curation.review.sets import read_set
    from curation.store import Store

    root = Store(store)
    found = read_set(root, recipe, version, name)
    made = write_report(root, found)
    held = move_latest(root, recipe, found.version)
    if as_json:
        typer.echo(json.dumps(made | {"held": held}, ensure_ascii=False, indent=1))
        return
    lines = [f"{recipe}/{found.version}: {made['rated']} of {made['items']} items, {len(made['raters'])} raters"]
    for dimension, one in made["dimensions"].items():
        lines.append(f"{dimension:<13} mean {_figure(one, 'mean')}  alpha {_figure(one, 'alpha')}")
    out.print(Text("\n".join(lines + [f"held: {reason}" for reason in held])))


def _figure(one: dict[str, Any], name: str) -> str:
    if one[name] is None:
        return "not told"
    low, high = one[f"{name}_95"]
    return f"{one[name]:.2f} ({low:.2f} to {high:.2f})"


def _left(done: dict[str, Any]) -> str:
    return f"{done['ratings']} of {done['wanted_ratings']} ratings are given"

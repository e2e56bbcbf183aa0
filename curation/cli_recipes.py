"""Commands on recipes: list, show, diff, validate, schema, distance."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curation.errors import ConfigError

out = Console(soft_wrap=True)


def place_for_a_file(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: refuses it before the work, not after."""
    if path is not None and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
        raise typer.BadParameter(f"{path}: {path.parent} is no folder in which a file of this name can be written")
    return path


DEFAULT_STORE = "var/store"
StoreRoot = Annotated[str, typer.Option("--store", envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")]
RecipeOrFile = Annotated[str, typer.Argument(help="Name (curation recipes list) or path of a .yaml file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, value as YAML: gates.too_small.at_least=128."),
]

PageToWrite = Annotated[
    Path,
    typer.Option("--out", callback=place_for_a_file, help="HTML page to write; the same as .json beside it."),
]

recipes = typer.Typer(no_args_is_help=True, help="List, show, compare and check recipes.")


@recipes.command("list")
def recipes_list(as_json: AsJson = False) -> None:
    """Names and descriptions of the recipes that come with the package."""
    from curation.recipe import load_recipe, recipe_names

    found = {name: load_recipe(name).description for name in recipe_names()}
    if as_json:
        _print_json(found)
    for name, description in {} if as_json else found.items():
        out.print(Text(f"{name:20} {description}"))


@recipes.command("show")
def recipes_show(recipe: RecipeOrFile, settings: Settings = None, as_json: AsJson = False) -> None:
    """Every setting of a recipe, defaults spelt out, as YAML.

    * `curation recipes show laion-400m`
    """
    from curation.recipe import load_recipe

    found = load_recipe(recipe, parse_settings(settings)).model_dump(mode="json", exclude_none=True)
    if as_json:
        _print_json(found)
    else:
        typer.echo(_yaml(found), nl=False)


@recipes.command("diff")
def recipes_diff(
    old: RecipeOrFile,
    new: RecipeOrFile,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a setting of the second.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what differs between two recipes, defaults spelt out, and whether the gates stand in another order.

    * `curation recipes diff laion-400m laion-5b-en`

    * `curation recipes diff pretrain pretrain --set gates.too_small.at_least=128`
    """
    from curation.recipe import load_recipe
    from curation.recipe_diff import recipe_diff

    found = recipe_diff(load_recipe(old), load_recipe(new, parse_settings(settings)))
    if as_json:
        _print_json(found)
        return
    for name, (before, after) in found["settings"].items():
        out.print(Text(f"{name}: {_value(before)} -> {_value(after)}"))
    if found["gate_order"]:
        before, after = found["gate_order"]
        out.print(Text(f"order of gates: {', '.join(before)} -> {', '.join(after)}"))
    if not found["settings"] and not found["gate_order"]:
        out.print("no difference")


@recipes.command("validate")
def recipes_validate(recipe: RecipeOrFile, settings: Settings = None, as_json: AsJson = False) -> None:
    """Check a recipe without running it: exit code 2 and the field's name when something is wrong."""
    from curation.recipe import load_recipe

    found = load_recipe(recipe, parse_settings(settings))
    if as_json:
        _print_json({"recipe": found.name, "stages": found.stage_names, "valid": True})
    else:
        out.print(Text(f"{recipe}: valid; runs {', '.join(found.stage_names)}"))


@recipes.command("schema")
def recipes_schema() -> None:
    """Print the JSON schema of recipes, for editors.

    * `curation recipes schema > recipe.schema.json`, and as the first line of a recipe
      `# yaml-language-server: $schema=recipe.schema.json`
    """
    from curation.recipe_schema import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))


@recipes.command("distance")
def recipes_distance(
    recipe: RecipeOrFile,
    of: Annotated[str, typer.Option(help="Recipe of the dataset that is measured; empty: this one.")] = "",
    version: Annotated[str, typer.Option(help="Version, or latest.")] = "latest",
    settings: Settings = None,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Tell how far a published version is from the recipe's target: samples wanted and quality bars.

    * `curation recipes distance pretrain`

    * `curation recipes distance instruct --of multitask --set target.samples=50000`
    """
    from curation.publish.parts import version_folder
    from curation.publish.target import distances
    from curation.publish.verify import read_manifest
    from curation.recipe import load_recipe
    from curation.store import Store

    loaded, root = load_recipe(recipe, parse_settings(settings)), Store(store)
    if loaded.target is None:
        raise ConfigError(f"recipe {recipe}: it has no section target: --set target.samples=1000000 gives it one")
    dataset = of or loaded.name
    found = read_manifest(root, dataset, version)["version"]
    quality = json.loads(root.read_bytes(f"{version_folder(dataset, found)}/quality.json"))
    goals = distances(loaded.target, quality)
    if as_json:
        _print_json({"dataset": dataset, "version": found, "target": [one.model_dump() for one in goals]})
        return
    table = Table(title=f"{dataset} {found} against the target of {loaded.name}")
    for heading in ("goal", "asks for", "", "found"):
        table.add_column(heading, overflow="fold")
    for one in goals:
        said, style = ("met", "green") if one.met else ("?", "yellow") if one.short is None else ("missed", "red")
        table.add_row(one.name, one.asks, Text(said, style=style), one.told)
    out.print(table)


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """Overrides of a recipe from NAME=VALUE, values in YAML. Raises ConfigError for what is neither."""
    overrides = {}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: give name=value, such as gates.too_small.at_least=128")
        try:
            overrides[name] = yaml.safe_load(value)
        except yaml.YAMLError as problem:
            raise ConfigError(
                f"--set {setting}: the value is not valid YAML: {' '.join(str(problem).split())}"
            ) from None
    return overrides


def _yaml(data: object) -> str:
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text


def _value(value: object) -> str:
    return "(none)" if value is None else json.dumps(value, ensure_ascii=False)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, default=str))

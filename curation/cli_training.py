"""Commands that train and measure captioners: `curation captions records|train|evaluate|bootstrap`."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from curation.cli_recipes import parse_settings
from curation.errors import ConfigError

if TYPE_CHECKING:
    from curation.store import Store

out = Console(soft_wrap=True)

StoreRoot = Annotated[str, typer.Option("--store", envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Setting, as YAML.")]
Name = Annotated[str, typer.Argument(help="Name of the model.")]
RecordsKey = Annotated[str, typer.Option(help="Key of records in the store, or a folder of captioned pictures.")]
DEFAULT_STORE = "var/store"


def records(
    folder: Annotated[
        Path | None, typer.Argument(exists=True, file_okay=False, help="captions.jsonl and images/.")
    ] = None,
    taught: Annotated[str, typer.Option(help="In its place: captions of `curation captions ask`, by name.")] = "",
    seed_set: Annotated[str, typer.Option(help="Or pictures of `curation captions seed` with the web's texts.")] = "",
    split: Annotated[str, typer.Option(help="Take lines of this split alone.")] = "",
    language: Annotated[str, typer.Option(help="Which list of captions, where lines have several.")] = "en",
    most: Annotated[int | None, typer.Option(min=1, help="Stop after so many pictures.")] = None,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Take captioned pictures into the store, to learn from or to measure on; prints their key.

    * `curation captions records flickr8k --split dev`
    * `curation captions records --taught first`

    * `curation captions records --seed-set first`
    """
    from curation.captions.asking import seed_records, taught_records
    from curation.captions.records import read_folder, write_records
    from curation.store import Store

    root = Store(store)
    if sum((folder is not None, bool(taught), bool(seed_set))) != 1:
        raise ConfigError("name a folder, --taught or --seed-set, one of them")
    if folder is not None:
        found = read_folder(folder, split=split, language=language, most=most)
    else:
        found = islice(taught_records(root, taught) if taught else seed_records(root, seed_set), most)
    made = write_records(root, found)
    if as_json:
        typer.echo(json.dumps(made._asdict()))
    else:
        out.print(Text(f"{made.key}  {made.rows} pictures"))


def train(
    name: Name,
    records: RecordsKey,
    setting: Set = None,
    processes: Annotated[int, typer.Option(min=1, help="GPUs of this machine to train on.")] = 1,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Train a student and keep it as a version; called again after a kill, go on from the last checkpoint.

    * `curation captions train captions-en --records captions/records/0123456789abcdef.arrow --set epochs=3`

    * `... --set student=llava-hf/llava-1.5-7b-hf --set lora.rank=16 --set dtype=bfloat16 --processes 8`
    """
    from pydantic import ValidationError

    from curation.captions.training import Job, Training, run_job
    from curation.store import Store

    root = Store(store)
    try:
        settings = Training.model_validate(_nested(setting))
    except ValidationError as err:
        told = "; ".join(f"--set {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())
        raise ConfigError(told) from None
    made = run_job(Job(store=root.root, name=name, records=_key(root, records), settings=settings), processes)
    if as_json:
        typer.echo(made.model_dump_json(indent=1))
    else:
        told = (
            f"loss {made.metrics['first_loss']:.3f} to {made.metrics['last_loss']:.3f} in {made.metrics['steps']} steps"
        )
        out.print(Text(f"{name}@{made.version}: {told}"))


def evaluate(
    name: Name,
    version: Annotated[str, typer.Argument(help="Its version.")],
    held_out: RecordsKey,
    setting: Set = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")] = "auto",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Measure a version on held-out pictures, beside its untrained student and the alt texts; kept with the version.

    * `curation captions evaluate captions-en 2026.11.23-ab12cd34 --held-out captions/records/fedcba9876543210.arrow`
    """
    from pydantic import ValidationError

    from curation.captions.evaluation import Judges, Protocol, evaluate_version
    from curation.captions.records import Records
    from curation.store import Store

    root = Store(store)
    try:
        protocol = Protocol.model_validate(parse_settings(setting or []))
    except ValidationError as err:
        told = "; ".join(f"--set {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors())
        raise ConfigError(told) from None
    judges = Judges(Records(root, _key(root, held_out)), protocol, device=device)
    found = evaluate_version(root, name, version, judges, device=device)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    lines = [f"{name}@{version} on {found.pictures} pictures, {found.held_out}"]
    for whose, metrics in {"this": found.metrics, **found.beside}.items():
        lines.append(f"{whose:<10}" + "  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    out.print(Text("\n".join(lines)))


def bootstrap(
    name: Name,
    human: Annotated[str, typer.Option(help="Records with captions by people: a key in the store, or a folder.")],
    web: Annotated[str, typer.Option(help="Records whose alt texts are cleaned, likewise.")],
    held_out: RecordsKey,
    rounds: Annotated[int, typer.Option(min=1, max=5, help="Of cleaning and training anew.")] = 2,
    setting: Set = None,
    processes: Annotated[int, typer.Option(min=1, help="GPUs of this machine to train on.")] = 1,
    by: Annotated[str, typer.Option(help="Who does it; it stays in the history.")] = "curation captions bootstrap",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Captioner and filter learn from people, clean the web's pairs, learn again: BLIP's rounds, each one measured.

    Called again after a kill, it goes on where it was; with more rounds, after the last one.

    * `curation captions bootstrap blip --human HUMAN --web WEB --held-out HELD_OUT --set training.epochs=3`

    * `... --set filter=blip-itm --set matching.matcher=Salesforce/blip-itm-base-coco --set margin=0.01`
    """
    from curation.captions.bootstrap import plan, run
    from curation.store import Store

    root = Store(store)
    keys = {"human": _key(root, human), "web": _key(root, web), "held_out": _key(root, held_out)}
    planned = plan(root, {**_nested(setting), **keys, "name": name, "rounds": rounds, "processes": processes})
    rows = run(root, planned, by=by)
    if as_json:
        typer.echo(json.dumps({"folder": planned.folder, "rounds": rows}, ensure_ascii=False))
        return
    lines = [planned.folder]
    for row in rows:
        for role in ("captioner", "filter"):
            found = row[role]
            told = "  ".join(f"{key} {value:.4f}" for key, value in found["metrics"].items())
            moved = (
                f"{'promoted' if found['promoted'] else 'not promoted'}: {found['reason']}" if "reason" in found else ""
            )
            lines.append(f"{row['round']!s:<6}{role:<10}{told}  {moved}".rstrip())
    out.print(Text("\n".join(lines)))


def add_training_to(app: typer.Typer) -> None:
    """Put the commands into `curation captions`."""
    for command in (records, train, evaluate, bootstrap):
        app.command()(command)


def _nested(settings: list[str] | None) -> dict[str, object]:
    """["lora.rank=16"] -> {"lora": {"rank": 16}}"""
    nested: dict[str, object] = {}
    for field, value in parse_settings(settings or []).items():
        *parents, last = field.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})  # type: ignore[assignment]
        place[last] = value
    return nested


def _key(store: Store, named: str) -> str:
    from curation.captions.records import read_folder, write_records

    return write_records(store, read_folder(Path(named))).key if Path(named).is_dir() else named

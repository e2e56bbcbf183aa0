"""Commands on published datasets: publish, diff, export, release, takedown, gc, audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from curation.cli_review import review
from curation.errors import ConfigError

if TYPE_CHECKING:
    from curation.store import Store

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

StoreRoot = Annotated[str, typer.Option("--store", envvar="CURATION_STORE", help="Folder or s3://bucket/prefix.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts, on stdout.")]
RecipeArgument = Annotated[str, typer.Argument(help="Recipe of the dataset.")]
DEFAULT_STORE = "var/store"


def publish(
    recipe: RecipeArgument,
    dump: Annotated[list[str], typer.Option(help="Dump to publish; give it for each one.")],
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Publish one version from all finished shards of several dumps.

    Shards whose samples are the same in the version before share its files. `latest` moves when every check of the
    release is met, else the version is held and exit code 1 is given. With publish.splits the held-out parts are
    published too, as RECIPE-val and RECIPE-test, and indexed as evaluation sets.

    * `curation publish laion-400m --dump CC-MAIN-2026-05 --dump CC-MAIN-2026-09`
    """
    from curation.block import recipe_key
    from curation.pipeline import saved_recipe
    from curation.publish.heldout import publish_held_out
    from curation.publish.sources import finished_shards
    from curation.publish.version import export_shard, finish_release, move_latest, plan_release, select_version

    root = _store(store)
    pinned = saved_recipe(root, recipe_key(root, dump[-1], recipe))
    with err.status("reading receipts"):
        sources = {name: finished_shards(root, pinned, name) for name in dump}
        version = plan_release(root, pinned, sources)
    if pinned.publish.selects:
        with err.status("caps, balance, splits"):
            select_version(root, pinned, version)
    for name, shards in sources.items():
        for number, shard in enumerate(shards, 1):
            with err.status(f"{name}: shard {number} of {len(shards)}"):
                export_shard(root, pinned, version, name, shard)
    with err.status("checks, card and manifest"):
        key = finish_release(root, pinned, version)
    told: dict[str, Any] = {"manifest": key}
    with err.status("held-out parts"):
        if held_out := publish_held_out(root, pinned, sources):
            told["held_out"] = held_out
    _tell_release(pinned.name, version, move_latest(root, pinned.name, version), as_json, told)


def diff(
    recipe: RecipeArgument,
    old: Annotated[str, typer.Argument(help="Version, or latest.")],
    new: Annotated[str, typer.Argument(help="Version, or latest.")] = "latest",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Tell what changed between two versions: settings, shards, samples, counts, distributions.

    * `curation diff laion-400m 2026.11.01-ab12cd34 latest`
    """
    from curation.publish.diff import diff as diff_of

    with err.status("comparing"):
        found = diff_of(_store(store), recipe, old, new)
    if as_json:
        _print_json(found)
        return
    samples = found["samples"]
    lines = [
        f"{found['old']} -> {found['new']}",
        f"samples: {samples['added']} added, {samples['removed']} removed, {samples['same']} the same"
        + (f", {samples['not_compared']} not compared" if samples["not_compared"] else ""),
        *(f"shards {what}: {', '.join(names)}" for what, names in found["shards"].items() if names),
        f"shared: {found['shared_files']} files, {decimal(found['shared_bytes'])}",
        *(f"{name}: {before} -> {after}" for name, (before, after) in found["settings"].items()),
        *(f"model {name}: {before} -> {after}" for name, (before, after) in found["models"].items()),
        *(f"{reason}: {before} -> {after}" for reason, (before, after) in found["counts"].items() if before != after),
        *(f"drift {name}: {index:g}" for name, index in found["drift"].items() if index >= 0.1),
    ]
    out.print(Text("\n".join(lines)))


def export(
    recipe: RecipeArgument,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where to lay it out.")],
    version: Annotated[str, typer.Option(help="Version, or latest.")] = "latest",
    kind: Annotated[
        list[str] | None, typer.Option(help="metadata, webdataset, pretrain, instruct, multi_image; none: all.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Unpack the pictures, as the JSON records name them.")
    ] = False,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Lay out a version as one local folder, checked against the manifest; run again to go on after an interruption.

    * `curation export sharegpt4v data/train --kind instruct --kind webdataset --images`
    """
    from curation.publish.layout import lay_out
    from curation.publish.settings import KINDS

    unknown = set(kind or []) - set(KINDS)
    if unknown:
        raise ConfigError(f"--kind {', '.join(sorted(unknown))}: give some of {', '.join(KINDS)}")
    with err.status("copying"):
        copied = lay_out(_store(store), recipe, version, folder, kinds=tuple(kind or ()), images=images)
    if as_json:
        _print_json({"folder": str(folder), "copied_bytes": copied})
    else:
        out.print(Text(f"{folder}: {decimal(copied)} copied; check it any time: sha256sum -c SHA256SUMS"))


def release(
    recipe: RecipeArgument,
    version: Annotated[str, typer.Argument(help="Version to let through.")],
    by: Annotated[str, typer.Option(help="Who approves.")],
    waive: Annotated[
        list[str] | None, typer.Option(metavar="CHECK=REASON", help="Let a failed check pass, and say why.")
    ] = None,
    note: Annotated[str, typer.Option(help="Anything to remember.")] = "",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Approve a version that is held, and move `latest` to it when nothing else holds it.

    * `curation release laion-400m 2026.11.01-ab12cd34 --by ada --waive drift="the new dump is of another year"`
    """
    from curation import audit
    from curation.publish.release import approve
    from curation.publish.version import move_latest

    waived = {name: reason for name, _, reason in (text.partition("=") for text in waive or [])}
    root = _store(store)
    approval = approve(root, recipe, version, by, waived, note)
    audit.append(root, "release", {"recipe": recipe, "version": version, **approval.model_dump()})
    _tell_release(recipe, version, move_latest(root, recipe, version), as_json, {})


def recheck(
    recipe: RecipeArgument,
    version: Annotated[str, typer.Argument(help="Version, or latest.")] = "latest",
    sample: Annotated[int, typer.Option(min=0, help="Pictures to ask for, drawn at random; 0: every one.")] = 1000,
    take_down: Annotated[
        bool, typer.Option("--take-down", help="Take out for good what is refused by now: ask every picture first.")
    ] = False,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Ask the hosts of a version's pictures again whether they may be used; exit code 1 when some are refused.

    robots.txt, X-Robots-Tag and TDM reservations as for the download; no picture is fetched.

    * `curation recheck laion-400m`

    * `curation recheck laion-400m --sample 0 --take-down`
    """
    from curation.publish import consent
    from curation.publish.verify import read_manifest
    from curation.publish.version import move_latest
    from curation.takedown import take_down as bury
    from curation.tombstones import targets_of

    root = _store(store)
    if take_down and sample:
        raise ConfigError("--take-down: ask every picture: --sample 0")
    manifest = read_manifest(root, recipe, version)
    with err.status("asking the hosts"):
        asked = consent.recheck(root, manifest, sample or None, keep_all=take_down)
    told = asked.model_dump() | {"n_refused": asked.n_refused}
    if take_down and asked.refusals:
        targets = targets_of([("url", refusal.url) for refusal in asked.refusals])
        receipt = bury(root, targets, reason="refused when asked again", requester="curation recheck")
        told |= {"receipt": receipt["id"], "versions": receipt["versions"]}
        for cleaned in receipt["versions"].values():  # what it asked for before is among what is gone
            name, _, successor = cleaned.partition("/")
            consent.recheck(root, read_manifest(root, name, successor), 1000)
            move_latest(root, name, successor)
    else:
        move_latest(root, recipe, manifest["version"])
    if as_json:
        _print_json(told)
    else:
        out.print(Text(asked.told()))
        for refusal in asked.refusals[:20]:
            out.print(Text(f"{refusal.url}: {refusal.reason}, {refusal.evidence}"))
        if "receipt" in told:
            out.print(Text(f"taken down: receipt {told['receipt']}"))
    if asked.n_refused and not take_down:
        raise typer.Exit(1)


def takedown(
    url: Annotated[list[str] | None, typer.Option(help="Address of a picture.")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="Host of pictures or pages, and all below it.")] = None,
    sample_id: Annotated[list[str] | None, typer.Option("--sample-id", help="32 hex digits.")] = None,
    sha256: Annotated[list[str] | None, typer.Option(help="Of the picture's file as fetched.")] = None,
    picture: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A picture: all that look like it.")
    ] = None,
    radius: Annotated[int, typer.Option(min=0, max=16, help="Bits of 64 by which the look may differ.")] = 4,
    reason: Annotated[str, typer.Option(help="Goes into the receipt.")] = "",
    requester: Annotated[str, typer.Option(help="Goes into the receipt.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only tell what would be done.")] = False,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Take samples out of every published version, for good: they never come back, from no dump.

    Without --yes nothing is changed. Prints the receipt for the requester, whose audit hash proves that it was logged.

    * `curation takedown --url https://example.com/me.jpg`

    * `curation takedown --domain example.com --reason "owner's request" --requester mail@example.com --yes`
    """
    from curation.images.decode import Undecodable, measure_picture
    from curation.takedown import take_down
    from curation.tombstones import targets_of

    named = {"url": url, "domain": domain, "sample_id": sample_id, "sha256": sha256}
    values = [(kind, value) for kind, given in named.items() for value in given or []]
    try:
        values += [("phash", measure_picture(path.read_bytes(), str(path))[0]) for path in picture or []]
    except Undecodable as problem:
        raise ConfigError(f"--picture: {problem}") from None
    if not values:
        raise ConfigError("takedown: name what is meant: --url, --domain, --sample-id, --sha256 or --picture")
    with err.status("looking through the published versions"):
        receipt = take_down(
            _store(store), targets_of(values, radius), reason=reason, requester=requester, dry_run=not yes
        )
    if as_json:
        _print_json(receipt)
        return
    for sample in receipt["samples"]:
        out.print(Text(f"{sample['sample_id']} {sample['url']} in {', '.join(sample['versions'])}"))
    if not yes:
        out.print(Text(f"{receipt['n_samples']} samples would go; nothing is changed: give --yes to do it"))
        return
    for old, new in receipt["versions"].items():
        out.print(Text(f"{old} withdrawn; {new} is published without them"))
    out.print(Text(f"{receipt['n_samples']} samples taken down; receipt {receipt['id']}, audit {receipt['audit']}"))


def balance(
    recipe: RecipeArgument,
    version: Annotated[str, typer.Argument(help="Version, or latest.")] = "latest",
    listed: Annotated[int, typer.Option(min=0, help="Concepts to list of each kind.")] = 20,
    spend: Annotated[int, typer.Option(min=0, help="A budget: spread so many slots over the rare concepts.")] = 0,
    purpose: Annotated[
        str, typer.Option("--for", help="What a slot buys: crawl, augment (a sample) or caption (a sample).")
    ] = "crawl",
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws others.")] = 0,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Tell which concepts of a balanced version are rare, and what a budget to fill them up should go for.

    * `curation balance pretrain`

    * `curation balance pretrain --spend 10000 --for caption --json > slots.json`
    """
    from curation.publish import longtail

    if purpose not in ("crawl", "augment", "caption"):
        raise ConfigError(f"--for {purpose}: give crawl, augment or caption")
    if spend:
        rows = longtail.spend(_store(store), recipe, version, spend, purpose, seed=seed)  # type: ignore[arg-type]
        if as_json:
            _print_json(rows)
        else:
            lines = [f"{row['slots']:>8}  {row['concept']}  (lacks {row['lacks']})" for row in rows]
            out.print(Text("\n".join([*lines[:listed], f"{len(rows)} concepts get slots"])))
        return
    found = longtail.long_tail(_store(store), recipe, version, listed)
    if as_json:
        _print_json(found)
        return
    for name, one in found["lists"].items():
        out.print(
            Text(
                f"list {name}: {one['rare']} of {one['concepts']} concepts have fewer than {one['threshold']} samples, "
                f"{one['absent']} none; {one['kept']} of {one['samples']} samples kept"
            )
        )
        for title in ("rarest", "most_common"):
            out.print(Text(title.replace("_", " ") + ":"))
            for concept, counts in one[title].items():
                out.print(Text(f"{counts['candidates']:>8} -> {counts['kept']:<8} {concept}"))


def gc(
    grace_hours: Annotated[float, typer.Option(help="Remove what was condemned so long ago.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Remove dataset files that no manifest and no version in the making names, in two runs a grace time apart.

    * `curation gc --dry-run`
    """
    from curation.publish.collect import collect

    with err.status("reading manifests"):
        done = collect(_store(store), grace_hours=grace_hours, dry_run=dry_run)
    if as_json:
        _print_json(vars(done))
    else:
        said = "would be removed" if dry_run else "removed"
        out.print(
            Text(f"{len(done.removed)} files {said}, {decimal(done.removed_bytes)}; {len(done.condemned)} condemned")
        )


def audit_log(
    newest: Annotated[str, typer.Option("--hash", help="Of an entry that you kept: it must be in the log.")] = "",
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Check that nothing in the log of takedowns and releases was changed, dropped or put in between.

    * `curation audit-log --hash 3f5a...`
    """
    from curation.audit import verify

    problems = verify(_store(store), newest)
    if as_json:
        _print_json({"problems": problems})
    else:
        out.print(Text("\n".join(problems) or "the log is whole"))
    if problems:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (publish, diff, export, release, recheck, takedown, balance, gc, audit_log):
        app.command()(command)  # audit_log is audit-log to typer
    app.add_typer(review, name="review")


def _tell_release(recipe: str, version: str, held: list[str], as_json: bool, more: dict[str, Any]) -> None:
    if as_json:
        _print_json({"version": version, "held": held} | more)
    else:
        out.print(Text(f"{recipe}/{version}" + ("" if held else " is released")))
        for reason in held:
            err.print(Text(f"held: {reason}", style="yellow"))
    if held:
        raise typer.Exit(1)


def _store(root: str) -> Store:
    from curation.store import Store

    return Store(root)


def _print_json(data: object) -> None:
    typer.echo(json.dumps(data, ensure_ascii=False, indent=1))

"""Commands on evaluation sets: index them, find the cosine from which a picture is a leak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from curation.cli_recipes import DEFAULT_STORE, AsJson, StoreRoot, place_for_a_file
from curation.errors import ConfigError

if TYPE_CHECKING:
    from curation.evalsets import Describe

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

DescriptorFile = Annotated[str, typer.Option(help="Instead of a model: TorchScript file of a descriptor (SSCD, ISC).")]
DescriptorSide = Annotated[int, typer.Option(min=16, help="Side of the square that the descriptor takes.")]
DescriptorTriple = Annotated[tuple[float, float, float], typer.Option(help="Of RGB in 0..1; ISC: 0.5 0.5 0.5.")]


def add_evalsets_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("index-evalset")(index_evalset)
    app.command("calibrate-leakage")(calibrate_leakage)


def index_evalset(
    name: Annotated[str, typer.Argument(help="Name that recipes use: stages.leakage.evalsets.")],
    path: Annotated[
        Path,
        typer.Argument(
            exists=True, help="Pictures, Parquet, WebDataset, a dataset saved by `datasets`, LLaVA's or VQA's JSON."
        ),
    ],
    images: Annotated[Path | None, typer.Option(help="Where a JSON's pictures lie; by default beside it.")] = None,
    model: Annotated[str, typer.Option(help="Embed the pictures too: embedded, or an architecture of open_clip.")] = "",
    pretrained: Annotated[str, typer.Option(help="Tag or file of the architecture's weights.")] = "",
    descriptor: DescriptorFile = "",
    descriptor_side_px: DescriptorSide = 288,
    descriptor_mean: DescriptorTriple = (0.485, 0.456, 0.406),
    descriptor_std: DescriptorTriple = (0.229, 0.224, 0.225),
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Index the pictures and texts of an evaluation set, so that leakage can find them in the crawl.

    * `curation index-evalset coco-val data/coco/val2017`

    * `curation index-evalset vqa-val data/vqa/questions.json --images data/coco/val2014 --model embedded`

    * `curation index-evalset coco-val data/coco/val2017 --descriptor sscd_disc_mixup.torchscript.pt`
    """
    from curation.evalsets import index_evalset as index
    from curation.store import Store

    describe, space = None, ""
    if model or descriptor:
        describe, space = _described_by(
            model, pretrained, descriptor, descriptor_side_px, descriptor_mean, descriptor_std
        )
    with err.status("hashing pictures"):
        found = index(Store(store), name, path, images=images, describe=describe, space=space)
    if as_json:
        typer.echo(json.dumps({"name": name, "embedding_space": space} | found._asdict()))
        return
    told = f"{name}: {found.items} items, {found.pictures} with a picture, {found.texts} with a text; {found.key}"
    out.print(Text(told + (f", embedding_space {space}" if space else "")))


def calibrate_leakage(
    evalset: Annotated[str, typer.Argument(help="Evaluation set, indexed with the model or descriptor.")],
    unrelated: Annotated[Path, typer.Option(exists=True, help="Pictures like those to be judged, no item among them.")],
    rate: Annotated[float, typer.Option(help="Share of unrelated pictures that may be taken for an item.")] = 0.002,
    model: Annotated[str, typer.Option(help="Model of the set: embedded, or an architecture of open_clip.")] = "",
    pretrained: Annotated[str, typer.Option(help="Tag or file of the architecture's weights.")] = "",
    descriptor: DescriptorFile = "",
    descriptor_side_px: DescriptorSide = 288,
    descriptor_mean: DescriptorTriple = (0.485, 0.456, 0.406),
    descriptor_std: DescriptorTriple = (0.229, 0.224, 0.225),
    plot: Annotated[Path | None, typer.Option(callback=place_for_a_file, help="Write a chart: an .svg file.")] = None,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Find the cosine from which a picture is a leak: the smallest that hardly any unrelated picture reaches.

    It belongs to the descriptor and the evaluation set. Set on every second picture, checked on the others.

    * `curation calibrate-leakage coco-val --unrelated data/my-photos --model embedded --rate 0.002`
    """
    from curation.reports.calibrate import calibrate_leakage as calibrated
    from curation.store import Store

    describe, space = _described_by(model, pretrained, descriptor, descriptor_side_px, descriptor_mean, descriptor_std)
    with err.status("comparing pictures"):
        found = calibrated(Store(store), evalset, unrelated, describe, space, rate)
    if plot:
        plot.write_text(found.svg)
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    low, high = found.false_positive_rate_95
    settings = f"embedding_cosine: {found.embedding_cosine}, embedding_space: {found.space}"
    out.print(Text(f"stages.leakage: {{{settings}}}  # set on {found.pictures} unrelated pictures"))
    out.print(
        Text(f"of {found.checked} others {found.false_positives} reach it (95 %: {low:.2%} to {high:.2%}); nearest:")
    )
    for picture, item, cosine in found.nearest:
        out.print(Text(f"  {cosine:.4f}  {picture}  beside item {item}"))


def _described_by(
    model: str, pretrained: str, descriptor: str, side_px: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Describe, str]:
    """What embeds pictures, and its space, as the options say."""
    if bool(model) == bool(descriptor):
        raise ConfigError("give one of --model and --descriptor")
    if descriptor:
        from curation.models.descriptor import Descriptor

        if not Path(descriptor).is_file():
            raise ConfigError(f"--descriptor {descriptor}: no such file")
        own = Descriptor(descriptor, side_px, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
        return own, own.space
    from curation.evalsets import clip_describer

    return clip_describer(model, pretrained)

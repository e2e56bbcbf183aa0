"""Versions of trained models in the store: what each was made from, how good it is, which one is promoted.

    models/NAME/VERSION/manifest.json                 written last: then the version exists
    models/NAME/VERSION/NAME-VERSION/...              the files of the model, as from_pretrained reads them
    models/NAME/VERSION/evaluations/DIGEST.json       its metrics on one held-out set
    models/NAME/promoted/NUMBER.json                  promotions and rollbacks; the last one says what is promoted

A promotion is an object under the next number, written only if none stands there: of two at once one wins and the other
looks again, now at the winner (decisions/0026).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from curation import __version__
from curation.errors import BadShardError, ConfigError
from curation.receipt import digest
from curation.store import Store

Role = Literal["captioner", "matcher"]
PREFIX = "registry:"
"""What a model's name begins with in a recipe that means one of the store: registry:NAME, registry:NAME@VERSION."""

METRICS: dict[Role, str] = {"captioner": "cider", "matcher": "itm_auc"}
"""What versions of a role are compared by unless another metric is named; of all metrics here more is better."""
MARGINS = {"cider": 0.02, "itm_auc": 0.005}
"""Least gain where none is named; ours, for a few hundred pictures: more of them bear a smaller one."""
UNTRAINED = "untrained"
"""Under this name an evaluation holds the metrics of the model that training began from."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


class Data(BaseModel):
    """A set that a model learnt from, named so that it can be found again.

    kind     records, seed_set, dataset, review_set, cleaned (web pairs after CapFilt)
    version  digest or version of the content, never a name that moves
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["records", "seed_set", "dataset", "review_set", "cleaned"]
    name: str
    version: str
    rows: int


class File(BaseModel):
    """A file of a model."""

    model_config = ConfigDict(frozen=True)

    name: str  # below the folder of the model, such as config.json
    size: int
    sha256: str


class Evaluation(BaseModel):
    """Metrics of a model on a held-out set; of each of them more is better.

    held_out   digest of the set's pictures and references
    settings   how captions were drawn and which models judged: metrics compare only where these are equal
    beside     metrics of others on the same set, by name: UNTRAINED, alt_text
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    held_out: str
    pictures: int
    metrics: dict[str, FiniteFloat]
    settings: dict[str, Any] = {}
    beside: dict[str, dict[str, FiniteFloat]] = {}


class Manifest(BaseModel):
    """A version: its files and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    version: str
    role: Role
    base_model: str  # identity of the model that training began from
    parent: str = ""  # version of the same name that it goes on from, "" for none
    rounds: int = 1  # of training, those of the parents counted
    data: tuple[Data, ...]
    settings: dict[str, Any]
    metrics: dict[str, Any]  # of the training itself: losses, steps, seconds; those on held-out sets are Evaluations
    code_version: str
    created_at: str
    files: tuple[File, ...]


class Move(BaseModel):
    """One line of the history of what was promoted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    action: Literal["promote", "rollback"]
    version: str
    before: str  # version that was promoted until then, "" for none
    reason: str
    by: str
    at: str


class Judgement(NamedTuple):
    """Whether a version may be promoted, and why or why not."""

    better: bool
    reason: str


def register(
    store: Store,
    name: str,
    folder: Path,
    *,
    role: Role,
    base_model: str,
    data: Sequence[Data],
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    parent: str = "",
    evaluations: Sequence[Evaluation] = (),
) -> Manifest:
    """Take a trained model into the store as a version, visible when its manifest stands.

    folder   as save_pretrained left it: config.json, safetensors, tokenizer, processor
    returns  the manifest; the same files made from the same data give the version that stands already
    raises   ConfigError for a bad name, a folder without a model, pickled weights, a parent that is not there
    """
    check_name(name)
    rounds = read(store, name, parent).rounds + 1 if parent else 1
    files = _files(folder)
    made_from = {"role": role, "base": base_model, "data": [one.model_dump() for one in data], "parent": parent}
    identity = digest(
        json.dumps(made_from | {"settings": dict(settings)}, sort_keys=True, default=str),
        *(f"{file.name}={file.sha256}" for file in files),
    )[:8]
    standing = [version for version in versions(store, name) if version.endswith(f"-{identity}")]
    now = datetime.now(UTC)
    version = standing[0] if standing else f"{now:%Y.%m.%d}-{identity}"
    for one in evaluations:
        add_evaluation(store, name, version, one)
    if standing:
        return read(store, name, version)
    for file in files:
        store.write_file(f"{_model_folder(name, version)}/{file.name}", folder / file.name)
    manifest = Manifest(
        name=name,
        version=version,
        role=role,
        base_model=base_model,
        parent=parent,
        rounds=rounds,
        data=tuple(data),
        settings=dict(settings),
        metrics=dict(metrics),
        code_version=__version__,
        created_at=now.isoformat(timespec="seconds"),
        files=files,
    )
    store.write_bytes(_manifest_key(name, version), manifest.model_dump_json(indent=1).encode(), if_absent=True)
    return read(store, name, version)


def names(store: Store) -> list[str]:
    """Models that have a version."""
    keys = (entry.key.split("/") for entry in store.entries("models/"))
    return sorted({key[1] for key in keys if len(key) == 4 and key[3] == "manifest.json"})


def versions(store: Store, name: str) -> list[str]:
    """Versions of a model, in order of name."""
    keys = (entry.key.split("/") for entry in store.entries(f"models/{name}/"))
    return sorted(key[2] for key in keys if len(key) == 4 and key[3] == "manifest.json")


def read(store: Store, name: str, version: str) -> Manifest:
    """Manifest of a version. Raises ConfigError naming those that there are, BadShardError for a damaged one."""
    try:
        return Manifest.model_validate_json(store.read_bytes(_manifest_key(name, version)))
    except FileNotFoundError:
        there = ", ".join(versions(store, name)) or "none"
        raise ConfigError(f"model {name!r} has no version {version!r} in {store.root}; there are: {there}") from None
    except ValidationError as err:
        raise BadShardError(f"{_manifest_key(name, version)}: the manifest can't be read: {err}") from err


def add_evaluation(store: Store, name: str, version: str, evaluation: Evaluation) -> None:
    """Keep a version's metrics on a held-out set; a later measurement on the same set replaces the earlier one."""
    key = f"models/{name}/{version}/evaluations/{evaluation.held_out}.json"
    store.write_bytes(key, evaluation.model_dump_json(indent=1).encode())


def evaluations(store: Store, name: str, version: str) -> dict[str, Evaluation]:
    """A version's metrics by digest of the held-out set."""
    found = {}
    for entry in store.entries(f"models/{name}/{version}/evaluations/"):
        one = Evaluation.model_validate_json(store.read_bytes(entry.key))
        found[one.held_out] = one
    return found


def history(store: Store, name: str) -> list[Move]:
    """Promotions and rollbacks in order."""
    keys = (entry.key for entry in store.entries(f"models/{name}/promoted/"))
    return [Move.model_validate_json(store.read_bytes(key)) for key in keys]


def promoted(store: Store, name: str) -> str:
    """Version that is promoted, "" for none."""
    moves = history(store, name)
    return moves[-1].version if moves else ""


def judge(
    store: Store, name: str, version: str, *, metric: str = "", margin: float | None = None, held_out: str = ""
) -> Judgement:
    """Whether a version beats the promoted one by the margin on the same held-out set under the same settings.

    Where none is promoted yet, it must beat the model that it was trained from, if its evaluation has that one beside.

    metric     "": the one of the role (METRICS)      margin   None: the metric's (MARGINS, else 0)
    held_out   digest of the set; "": the one that the version was measured on, if it is one alone
    raises     ConfigError for an unknown version, a metric that was not measured, or sets to choose from
    """
    manifest = read(store, name, version)
    metric = metric or METRICS[manifest.role]
    least = MARGINS.get(metric, 0.0) if margin is None else margin
    mine = _measured(evaluations(store, name, version), f"{name}@{version}", held_out)
    if metric not in mine.metrics:
        raise ConfigError(f"metric {metric!r}: {name}@{version} was measured by {', '.join(sorted(mine.metrics))}")
    before = promoted(store, name)
    if before == version:
        return Judgement(False, f"{name}@{version} is promoted already")
    if before:
        theirs = evaluations(store, name, before).get(mine.held_out)
        if theirs is None or metric not in theirs.metrics:
            return Judgement(False, f"{name}@{before}, promoted, was not measured by {metric} on {mine.held_out}")
        if theirs.settings != mine.settings:
            return Judgement(False, f"{name}@{before}, promoted, was measured with {_differing(theirs, mine)}")
        bar, whose = theirs.metrics[metric], f"{before}, promoted"
    elif metric in mine.beside.get(UNTRAINED, {}):
        bar, whose = mine.beside[UNTRAINED][metric], UNTRAINED
    else:
        return Judgement(True, f"the first version; nothing to compare {metric} {mine.metrics[metric]:.4f} with")
    gain = mine.metrics[metric] - bar
    told = f"{metric} {mine.metrics[metric]:.4f} against {bar:.4f} ({whose}) on {mine.pictures} pictures"
    return Judgement(gain >= least, f"{told}: a gain of {gain:+.4f}, at least {least:g} is asked for")


def promote(
    store: Store,
    name: str,
    version: str,
    *,
    metric: str = "",
    margin: float | None = None,
    held_out: str = "",
    by: str,
    note: str = "",
) -> Move:
    """Make a version the one that `registry:NAME` means, if `judge` finds it better.

    returns  the new line of the history, its reason what `judge` found
    raises   ConfigError with the reason when it is not better
    """
    while True:
        moves = history(store, name)
        found = judge(store, name, version, metric=metric, margin=margin, held_out=held_out)
        if not found.better:
            raise ConfigError(f"{name}@{version} is not promoted: {found.reason}")
        reason = f"{note}: {found.reason}" if note else found.reason
        if move := _moved(store, name, moves, "promote", version, reason, by):
            return move


def rollback(store: Store, name: str, *, to: str = "", reason: str, by: str) -> Move:
    """Promote again what was promoted before; a second rollback goes one further back.

    to       version to go back to, "" for the one before
    raises   ConfigError when there is no such earlier version
    """
    while True:
        moves = history(store, name)
        earlier = _stack(moves)[:-1]
        if not earlier or (to and to not in earlier):
            there = ", ".join(earlier) or "none"
            raise ConfigError(f"{name} can't go back to {to or 'an earlier version'}: promoted before: {there}")
        if move := _moved(store, name, moves, "rollback", to or earlier[-1], reason, by):
            return move


def resolve(store: Store, reference: str, role: Role, place: str = "") -> str:
    """registry:NAME@VERSION of a reference that may leave the version out; then it is the promoted one.

    place    the setting that it stands in, for messages
    raises   ConfigError for an unknown model, one of another role, or one of which no version is promoted
    """
    where = f"{place}: " if place else ""
    name, _, version = reference.removeprefix(PREFIX).partition("@")
    if not _NAME.fullmatch(name) or not versions(store, name):
        there = ", ".join(names(store)) or "none"
        raise ConfigError(f"{where}no model {name!r} in {store.root}; there are: {there}")
    version = version or promoted(store, name)
    if not version:
        raise ConfigError(
            f"{where}no version of {name!r} is promoted: name one, {PREFIX}{name}@VERSION, or promote one"
        )
    manifest = read(store, name, version)
    if manifest.role != role:
        raise ConfigError(f"{where}{name}@{version} is a {manifest.role}, a {role} is needed here")
    return f"{PREFIX}{name}@{version}"


def local_folder(store: Store, reference: str) -> Path:
    """A local folder with the files of registry:NAME@VERSION; from S3 they are copied once.

    raises   ConfigError for an unknown version, BadShardError for a file that is missing or of another size
    """
    name, _, version = reference.removeprefix(PREFIX).partition("@")
    manifest = read(store, name, version)
    folder = _model_folder(name, version)
    for file in manifest.files:
        key = f"{folder}/{file.name}"
        try:
            found = store.local_copy(key)
            size = found.stat().st_size
        except FileNotFoundError:
            raise BadShardError(f"{key}: the file is missing") from None
        if size != file.size:
            raise BadShardError(f"{key}: expected {file.size} bytes, found {size}")
    return store.local_copy(f"{folder}/config.json").parent


def _measured(found: dict[str, Evaluation], whose: str, held_out: str) -> Evaluation:
    if held_out in found:
        return found[held_out]
    if held_out or len(found) != 1:
        raise ConfigError(
            f"{whose}: name one of the held-out sets that it was measured on: {', '.join(found) or 'none'}"
        )
    return next(iter(found.values()))


def _differing(theirs: Evaluation, mine: Evaluation) -> str:
    keys = sorted(theirs.settings.keys() | mine.settings.keys())
    pairs = ((key, theirs.settings.get(key), mine.settings.get(key)) for key in keys)
    return "; ".join(f"{key} {old!r}, not {new!r}" for key, old, new in pairs if old != new)


def _stack(moves: Sequence[Move]) -> list[str]:
    """Versions that a rollback can go through, the promoted one last."""
    stack: list[str] = []
    for move in moves:
        if move.action == "rollback" and move.version in stack:
            del stack[len(stack) - stack[::-1].index(move.version) :]
        else:
            stack.append(move.version)
    return stack


def _moved(
    store: Store, name: str, moves: Sequence[Move], action: Literal["promote", "rollback"], version: str, reason: str,
    by: str,
) -> Move | None:  # fmt: skip
    """The new line of the history; None where somebody else wrote that line."""
    number = moves[-1].number + 1 if moves else 0
    at = datetime.now(UTC).isoformat(timespec="seconds")
    before = moves[-1].version if moves else ""
    move = Move(number=number, action=action, version=version, before=before, reason=reason, by=by, at=at)
    key = f"models/{name}/promoted/{number:08d}.json"
    return move if store.write_bytes(key, move.model_dump_json(indent=1).encode(), if_absent=True) else None


def _files(folder: Path) -> tuple[File, ...]:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: expected a folder of a model with its config.json")
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix in _PICKLED:
            raise ConfigError(f"{folder}: {name} is pickled, which can run code when it is loaded: save safetensors")
        with path.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        found.append(File(name=name, size=path.stat().st_size, sha256=content))
    return tuple(found)


def check_name(name: str) -> None:
    """Raises ConfigError for what can't be the name of a model."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"model {name!r}: a name is lower-case letters, digits, dots, dashes, 64 at most")


def _model_folder(name: str, version: str) -> str:
    return f"models/{name}/{version}/{name}-{version}"  # the folder's own name is what receipts tell


def _manifest_key(name: str, version: str) -> str:
    return f"models/{name}/{version}/manifest.json"

"""Fit a model by transformers' Trainer: checkpoints, resume after a kill, smaller batches where memory is short."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from curation.captions.halving import out_of_memory, release
from curation.errors import ConfigError, OutageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.trainer_callback import TrainerCallback

log = logging.getLogger(__name__)
WHOLE = "whole.json"
"""Written last into a checkpoint, with the sizes of its files."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Collate = Callable[[list[Any]], "dict[str, torch.Tensor]"]
Loss = Callable[..., "torch.Tensor"]
"""loss(outputs, labels, num_items_in_batch=None): sums divided by num_items_in_batch, where it is given."""


class Examples(Protocol):
    """What is learnt from, by number; the same each time."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


class Lora(BaseModel):
    """Low-rank adapters in place of all weights (Hu et al. 2021); they are merged into the weights at the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, description="the adapters' output counts alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1)
    modules: tuple[str, ...] = Field((), description="ends of names of linear layers; none: all that are not frozen")


class Fit(BaseModel):
    """How a model is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="of the optimizer, in place of epochs")
    batch_size: int = Field(64, ge=1, description="examples a step of the optimizer, over all devices")
    micro_batch: int = Field(8, ge=1, description="examples at once on a device; halved when memory is short")
    learning_rate: float = Field(2e-5, gt=0, description="at its highest; falls to nothing along a cosine")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(0.05, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    lora: Lora | None = None
    frozen: tuple[str, ...] | None = Field(
        None, description="what names of weights begin with that stay as they are; null: the picture tower's"
    )
    precision: Precision = Field("auto", description="auto: bfloat16 or float16 where a GPU has it, else float32")
    gradient_checkpointing: bool = Field(False, description="less memory, a third more work")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto: the GPUs, else the CPU; cpu")
    save_every: int = Field(200, ge=1, description="steps between two checkpoints: what a kill can cost")
    log_every: int = Field(10, ge=1, description="steps")
    workers: int = Field(0, ge=0, description="processes that decode pictures; 0: the one that trains")


@dataclass
class Fitted:
    """model: trained, adapters merged. log: step, loss, learning rate, grad_norm. shortages: how often memory was."""

    model: PreTrainedModel
    log: list[dict[str, float]]
    steps: int
    seconds: float  # of this process, without what was done before a kill
    resumed_from: int  # step of the checkpoint that this process went on from, 0 for none
    micro_batch: int
    shortages: int
    precision: str
    device: str
    trainable: int  # weights
    main: bool = True  # of several processes the one that writes

    @property
    def metrics(self) -> dict[str, Any]:
        """What the registry keeps of it."""
        losses = [line["loss"] for line in self.log]
        told = {name: value for name, value in vars(self).items() if name not in ("model", "log", "main")}
        return told | {
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "log": self.log,
        }


@dataclass
class _State:
    micro_batch: int
    shortages: int = 0
    path: Path = field(default_factory=Path)

    def keep(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"micro_batch": self.micro_batch, "shortages": self.shortages}))
        part.replace(self.path)


def fit(
    build: Callable[[], PreTrainedModel],
    examples: Examples,
    collate: Collate,
    loss: Loss,
    settings: Fit,
    work: Path,
    *,
    frozen: Sequence[str] = (),
) -> Fitted:
    """Fit the model that `build` gives to the examples; go on from the last whole checkpoint in `work`.

    build     a new model each time it is called, the same weights each time
    collate   examples to the arguments of the model's forward and `labels`, -100 where nothing is to be learnt
    work      a folder of this run alone: of these settings, this model and these examples
    frozen    what names of weights begin with that stay as they are, unless settings.frozen says others

    Interrupted and resumed it gives what it gives uninterrupted: weights, order and random streams come back from the
    checkpoint. A batch without room is halved and more of them make a step: the step, and so the result but for
    rounding and dropout, stays the same; the process goes back to the last checkpoint.

    raises    ConfigError where batch_size is no multiple of what the devices take, or there is nothing to learn;
              OutageError where not even one example has room
    """
    import transformers

    work.mkdir(parents=True, exist_ok=True)
    if not len(examples):
        raise ConfigError("training: there is no example to learn from")
    state = _read_state(work / "memory.json", settings)
    began = time.monotonic()
    while True:
        transformers.set_seed(settings.seed)
        model = _prepared(build(), settings, settings.frozen if settings.frozen is not None else tuple(frozen))
        last = _last_whole(work)
        try:
            trainer = _trainer(model, examples, collate, loss, settings, state.micro_batch, work)
            trainer.train(resume_from_checkpoint=str(last) if last else None)
            break
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if state.micro_batch == 1:
                raise OutageError("training: the device has no room for a single example") from error
            state.shortages += 1
            state.micro_batch = _smaller(state.micro_batch, settings.batch_size)
            state.keep()  # a process that is started again begins with what has room
            if world_size() > 1:  # the others wait for this one in the middle of a step: all of them must start again
                raise OutageError(f"training: no room for a batch: start again, with {state.micro_batch}") from error
        log.warning("training: no room for a batch: %d at once from here on", state.micro_batch)
        trainer = model = None
        release()
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    keys = ("step", "loss", "learning_rate", "grad_norm")
    where = str(trainer.args.device)
    main = bool(trainer.is_world_process_zero())
    merged = trainer.accelerator.unwrap_model(trainer.model)
    return Fitted(
        model=merged.merge_and_unload() if settings.lora else merged,
        log=[{key: round(float(line[key]), 8) for key in keys if key in line} for line in lines],
        steps=int(trainer.state.global_step),
        seconds=round(time.monotonic() - began, 1),
        resumed_from=int(last.name.rpartition("-")[2]) if last else 0,
        micro_batch=state.micro_batch,
        shortages=state.shortages,
        precision=_precision(settings),
        device=where,
        trainable=trainable,
        main=main,
    )


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Wait until no other process of this machine is at work on a run, and keep the others waiting.

    A task that Airflow has given up may live on, while its next attempt begins.
    """
    work.parent.mkdir(parents=True, exist_ok=True)
    with work.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def world_size() -> int:
    """Processes that train together, as `accelerate launch` started them."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def _trainer(
    model: PreTrainedModel, examples: Examples, collate: Collate, loss: Loss, settings: Fit, micro_batch: int,
    work: Path,
) -> Any:  # fmt: skip
    import transformers

    class FrozenTrainer(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            for module in still:  # train() woke them: batch norms of a frozen tower would drift, its dropout would drop
                module.eval()
            return super().compute_loss(model, *args, **kwargs)

    still = [m for m in model.modules() if (w := list(m.parameters())) and not any(one.requires_grad for one in w)]
    together = micro_batch * world_size()
    if settings.batch_size % together:
        raise ConfigError(
            f"batch_size {settings.batch_size}: no multiple of {together}, which {world_size()} devices take at once"
        )
    precision = _precision(settings)
    arguments = transformers.TrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.batch_size // together,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        activation_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed,
        save_steps=settings.save_every,
        save_total_limit=2,  # the newest may not be whole when a kill comes
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=_on_gpu(settings),
        remove_unused_columns=False,
        use_cpu=not _on_gpu(settings),
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )
    model.accepts_loss_kwargs = False  # the loss is ours, the model need not hear of it
    trainer = FrozenTrainer(
        model, arguments, data_collator=collate, train_dataset=examples, compute_loss_func=loss, callbacks=[_callback()]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _callback() -> TrainerCallback:
    from transformers import TrainerCallback

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                _mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if state.is_world_process_zero and logs and "loss" in logs:
                log.info("training: step %d of %d, loss %.4f", state.global_step, state.max_steps, logs["loss"])

    return Told()


def _prepared(model: PreTrainedModel, settings: Fit, frozen: tuple[str, ...]) -> Any:
    for name, weight in model.named_parameters():
        weight.requires_grad_(not name.startswith(frozen) if frozen else True)
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()
    if not settings.lora:
        return model
    import peft
    import torch

    head = model.get_output_embeddings()
    named = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module.weight.requires_grad
        and module is not head  # often the word table turned round
        and (not settings.lora.modules or name.endswith(settings.lora.modules))
    ]
    if not named:
        raise ConfigError(f"lora.modules: no linear layer ends in one of {', '.join(settings.lora.modules)}")
    lora = settings.lora
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=named)
    with warnings.catch_warnings():  # peft asks transformers by a name that is going away
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return peft.get_peft_model(model, config)


def _mark_whole(checkpoint: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(checkpoint.iterdir()) if file.is_file()}
    for name in sizes:  # before the mark: it must not outlive them in a loss of power
        descriptor = os.open(checkpoint / name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    part = checkpoint / f"{WHOLE}.part"
    part.write_text(json.dumps(sizes))
    part.rename(checkpoint / WHOLE)


def _last_whole(work: Path) -> Path | None:
    """The newest checkpoint that was finished; those after it are removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            sizes = json.loads((checkpoint / WHOLE).read_text())
            if all((checkpoint / name).stat().st_size == size for name, size in sizes.items()):
                return checkpoint
        except (OSError, ValueError):
            pass
        log.warning("training: %s is not whole: it is left out", checkpoint)
        if not int(os.environ.get("RANK") or 0):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _read_state(path: Path, settings: Fit) -> _State:
    try:
        kept = json.loads(path.read_text())
        return _State(min(settings.micro_batch, settings.batch_size, kept["micro_batch"]), kept["shortages"], path)
    except (OSError, ValueError, KeyError):
        return _State(min(settings.micro_batch, settings.batch_size), 0, path)


def _smaller(micro_batch: int, batch_size: int) -> int:
    """Half, or the next smaller number that divides what a device takes in a step."""
    share = max(1, batch_size // world_size())
    return next(size for size in range(max(1, micro_batch // 2), 0, -1) if share % size == 0)


def _on_gpu(settings: Fit) -> bool:
    import torch

    return settings.device != "cpu" and bool(torch.cuda.is_available())


def _precision(settings: Fit) -> str:
    import torch

    if settings.precision != "auto":
        return settings.precision
    if not _on_gpu(settings):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"

"""Samples a second of the score stage, beside a plain open_clip loop and clip-retrieval's inference, in one run.

    python benchmarks/score.py --model ViT-B-32 --samples 2000
    python benchmarks/score.py --model ViT-L-14 --samples 20000 --batch 512 --peak-tflops 989    # an H200, dense half
    python benchmarks/score.py --model embedded --samples 256
    python benchmarks/score.py --clip-retrieval /tmp/peer/bin/python ...     # its own environment

Pictures are crops of the photographs that scikit-image carries, stored as the download stage stores them; captions
are short. An architecture without `--pretrained` gets random weights: speed doesn't depend on their values. Every
contender reads files from disk, decodes, embeds pictures and captions, and keeps float16 on the host; ours gets them
as the runner hands them over, out of a Parquet table. Models are loaded and warmed up before the clock starts. Each
contender runs in a process of its own, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

TARS = 16  # a worker of clip-retrieval's takes one or more
CAPTIONS = (
    "a cat looks at the camera",
    "a cup of coffee on a wooden table, seen from above",
    "rocket launch",
    "street",
)


def build(folder: Path, n: int) -> None:
    """Write n JPEGs of 256 px short side with captions, and the same as a table and as tars."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from skimage import data

    photographs = [Image.fromarray(getattr(data, name)()) for name in ("chelsea", "coffee", "rocket", "astronaut")]
    rng = np.random.default_rng(0)
    rows = []
    for number in range(n):
        photograph = photographs[number % len(photographs)]
        scale = rng.uniform(0.6, 1)
        width, height = int(photograph.width * scale), int(photograph.height * scale)
        x, y = rng.integers(0, photograph.width - width + 1), rng.integers(0, photograph.height - height + 1)
        crop = photograph.crop((x, y, x + width, y + height))
        ratio = 256 / min(crop.size)
        file = io.BytesIO()
        crop.resize((round(width * ratio), round(height * ratio))).save(file, "JPEG", quality=95)
        caption = CAPTIONS[number % len(CAPTIONS)]
        (folder / f"{number:06d}.jpg").write_bytes(file.getvalue())
        (folder / f"{number:06d}.txt").write_text(caption)
        rows.append({"image": file.getvalue(), "text": caption, "partition": "en"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet", row_group_size=1024)
    for part in range(TARS):
        with tarfile.open(folder / f"{part:02d}.tar", "w") as tar:
            for number in range(part, n, TARS):
                for suffix in ("jpg", "txt"):
                    tar.add(folder / f"{number:06d}.{suffix}", f"{number:06d}.{suffix}")


def weights_of(folder: Path, model: str, pretrained: str | None) -> str | None:
    """The weights to give every contender: those named, or random ones of this architecture in a file."""
    if pretrained or model.startswith("embedded"):
        return pretrained
    import open_clip
    from safetensors.torch import save_file

    path = folder / "random.safetensors"
    save_file(open_clip.create_model(model, load_weights=False).state_dict(), path)
    return str(path)


def ours(folder: Path, model: str, weights: str | None, batch: int) -> Callable[[], int]:
    """The stage as the runner calls it."""
    import pyarrow.parquet as pq

    from curation.stages.score import ClipChoice, Score

    choice = ClipChoice(model=model, pretrained=weights)
    stage = Score(english=choice, multilingual=choice, batch_size=batch)

    def work() -> int:
        batches = pq.ParquetFile(folder / "table.parquet").iter_batches(1024)
        return sum(answer.num_rows for answer in stage(batches, Counter()))

    first = next(pq.ParquetFile(folder / "table.parquet").iter_batches(min(batch, 256)))
    list(stage(iter([first]), Counter()))
    return work


def plain(folder: Path, model: str, weights: str | None, batch: int) -> Callable[[], int]:
    """The loop of open_clip's README over batches: open, transform, encode, normalise."""
    import open_clip
    import torch
    from PIL import Image

    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = model
    if model.startswith("embedded"):
        from curation.models.embedded.assemble import EMBEDDED, assembled

        source = f"local-dir:{assembled(EMBEDDED[model])}"
    clip, _, transform = open_clip.create_model_and_transforms(source, pretrained=weights, device=device)
    tokenize = open_clip.get_tokenizer(source)
    clip.eval()
    files = sorted(folder.glob("*.jpg"))

    def embed(part: list[Path]) -> None:
        pixels = torch.stack([transform(Image.open(file)) for file in part]).to(device)
        tokens = tokenize([file.with_suffix(".txt").read_text() for file in part]).to(device)
        half = torch.autocast(device, enabled=device == "cuda")
        with torch.inference_mode(), half:
            for vectors in (clip.encode_image(pixels), clip.encode_text(tokens)):
                (vectors / vectors.norm(dim=-1, keepdim=True)).cpu().to(torch.float16).numpy()

    def work() -> int:
        for start in range(0, len(files), batch):
            embed(files[start : start + batch])
        return len(files)

    embed(files[: min(batch, 256)])
    return work


def clip_retrieval(folder: Path, model: str, weights: str | None, batch: int) -> Callable[[], int]:
    """clip-retrieval's own reader, mapper and writer, its loader of open_clip's models.

    From a tar: its reader of folders looks for pictures under the names of the texts (2.45.0) and finds none.
    """
    from all_clip import load_clip
    from clip_retrieval.clip_inference.worker import worker

    name = f"open_clip:{model}/{weights}"
    # with the very arguments of the worker, which then finds it loaded and warm
    load_clip(clip_model=name, use_jit=False, warmup_batch_size=batch, clip_cache_path=None)

    def work() -> int:
        with tempfile.TemporaryDirectory() as output:
            worker(
                tasks=[0],
                input_dataset=sorted(map(str, folder.glob("*.tar"))),
                output_folder=output,
                output_partition_count=1,
                input_format="webdataset",
                batch_size=batch,
                num_prepro_workers=min(TARS, len(os.sched_getaffinity(0))),
                clip_model=name,
                use_jit=False,
            )
            return sum(len(np.load(file)) for file in Path(output).glob("img_emb/*.npy"))

    return work


def device_rate(model: str, weights: str | None, batch: int) -> dict[str, float]:
    """What the device does with pictures and captions that are there already: the roof of any pipeline around it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from curation.models.clip import load_clip

    clip = load_clip(model, weights)
    size = batch if clip.device.type == "cuda" else 8
    pictures = [np.zeros((clip.image_size, clip.image_size, 3), np.uint8)] * size
    tokens = clip.tokenize([CAPTIONS[at % len(CAPTIONS)] for at in range(size)])
    counter = FlopCounterMode(display=False)
    with counter:
        clip.embed_fitted(pictures)
        clip.embed_tokens(tokens)

    def once() -> None:
        clip.embed_fitted(pictures)
        clip.embed_tokens(tokens)
        if clip.device.type == "cuda":
            torch.cuda.synchronize()

    once()
    started, rounds = time.monotonic(), 0
    while time.monotonic() - started < 10:
        once()
        rounds += 1
    return {
        "rate": rounds * size / (time.monotonic() - started),
        "gflop_a_sample": counter.get_total_flops() / size / 1e9,
    }


class GpuBusy:
    """Mean of nvidia-smi's utilisation while the block runs; nan without a GPU."""

    def __enter__(self) -> GpuBusy:
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"]
        while not self._stop.is_set():
            try:
                found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                self._samples.append(float(found))
            except (OSError, ValueError, subprocess.CalledProcessError):
                return
            self._stop.wait(0.2)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def share(self) -> float:
        return float(np.mean(self._samples)) / 100 if self._samples else float("nan")


CONTENDERS = {"curation": ours, "open_clip loop": plain, "clip-retrieval": clip_retrieval}


def measure(name: str, folder: Path, model: str, weights: str | None, batch: int) -> dict[str, float]:
    """Load and warm up, then time the work once."""
    if name == "device":
        return device_rate(model, weights, batch)
    work = CONTENDERS[name](folder, model, weights, batch)
    with GpuBusy() as gpu:
        started, cpu = time.monotonic(), time.process_time()
        n = work()
        seconds = time.monotonic() - started
    return {
        "samples": n,
        "rate": n / seconds,
        "cpu_s": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "gpu_busy": gpu.share,
    }


def main() -> None:
    """Build the pictures, run each contender in its process, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--pretrained")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1, help="each contender so often, in turns; the best counts")
    parser.add_argument("--clip-retrieval", metavar="PYTHON", help="interpreter that has clip-retrieval installed")
    parser.add_argument("--peak-tflops", type=float, help="of the device in the precision used, for the roofline")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print("RESULT", json.dumps(measure(args.one, args.folder, args.model, args.weights, args.batch)))
        return
    pythons = {"device": sys.executable, "curation": sys.executable, "open_clip loop": sys.executable}
    if args.clip_retrieval and not args.model.startswith("embedded"):
        pythons["clip-retrieval"] = args.clip_retrieval
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder, args.samples)
        weights = weights_of(folder, args.model, args.pretrained)
        for name, python in [*pythons.items()] * args.rounds:
            command = [python, __file__, "--one", name, "--folder", str(folder), "--model", args.model]
            command += ["--batch", str(args.batch), *(["--weights", weights] if weights else [])]
            ran = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                print(f"{name} failed:\n{ran.stderr[-2000:]}", file=sys.stderr)
                continue
            found = json.loads(lines[-1].removeprefix("RESULT "))
            if name not in best or found["rate"] > best[name]["rate"]:
                best[name] = found
    roof = best.pop("device", {"rate": float("nan"), "gflop_a_sample": float("nan")})
    print(f"{args.model}, {args.samples} samples, batch {args.batch}, best of {args.rounds}")
    print(f"device alone: {roof['rate']:.1f} samples/s, {roof['gflop_a_sample']:.1f} GFLOP a sample\n")
    print("| | samples/s | of the device alone | CPU s | peak MiB | GPU busy | of the peak |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, found in best.items():
        peak = found["rate"] * roof["gflop_a_sample"] / args.peak_tflops / 1e3 if args.peak_tflops else float("nan")
        print(
            f"| {name} | {found['rate']:.1f} | {found['rate'] / roof['rate']:.0%} | {found['cpu_s']:.0f} | "
            f"{found['peak_mib']:.0f} | {found['gpu_busy']:.0%} | {peak:.0%} |"
        )


if __name__ == "__main__":
    main()

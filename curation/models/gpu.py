"""How busy the machine's GPUs are, as the driver tells it."""

from __future__ import annotations

import shutil
import subprocess
from typing import NamedTuple

_QUERY = ["--query-gpu=index,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]


class Gpu(NamedTuple):
    """One GPU now."""

    number: int
    busy: int  # percent of the last second in which a kernel ran
    memory: float  # share in use, 0..1


def gpus() -> list[Gpu]:
    """Every GPU of this machine; none where there is no driver, or where it does not answer within ten seconds."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        done = subprocess.run([command, *_QUERY], capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return []
    return parse(done.stdout) if done.returncode == 0 else []


def parse(csv: str) -> list[Gpu]:
    """Read the driver's lines; a GPU that does not tell (`[N/A]`, as a slice of one does) is left out."""
    found = []
    for line in csv.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and all(field.isdecimal() for field in fields) and int(fields[3]):
            number, busy, used, total = map(int, fields)
            found.append(Gpu(number, busy, used / total))
    return found

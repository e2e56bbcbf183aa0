"""Make .venv, or finish or refresh it; returns at once when it stands as pyproject.toml and requirements.lock ask.

Run by the system's Python with the standard library alone: `python3 scripts/venv.py`, or through `make`.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "complete"  # digest of what was installed; written last, so its absence means half-installed
INPUTS = [ROOT / "pyproject.toml", ROOT / "requirements.lock"]
PIP_AS_UV = {
    "index-url": "--default-index",
    "extra-index-url": "--extra-index-url",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
}  # pip's settings by the options of uv, which doesn't read them
EXTRAS = "models,airflow,fleet,demo,dev"


def main() -> int:
    """Return the exit status."""
    import fcntl

    with INPUTS[0].open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits and finds it done
        wanted = digest()
        if STAMP.exists() and STAMP.read_text() == wanted and works():
            return 0
        return install(wanted)


def digest() -> str:
    """Digest of all that decides what is in the environment, its place included: scripts name it."""
    parts = [path.read_bytes() for path in INPUTS]
    parts += [str(VENV).encode(), ".".join(map(str, sys.version_info[:2])).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def works() -> bool:
    """Whether the environment's Python starts at all: an upgrade of the system may have taken it away."""
    try:
        return (
            subprocess.run([VENV / "bin" / "python", "-P", "-c", "import curation"], capture_output=True).returncode
            == 0
        )
    except OSError:
        return False


def install(wanted: str) -> int:
    """Create the environment where there is none that starts, and install into it."""
    started = time.monotonic()
    if STAMP.exists() or (VENV / "bin").exists():
        print(".venv is unfinished or out of date: bringing it up to date", flush=True)
    else:
        print("making .venv (once; some 7 GB, minutes)", flush=True)
    STAMP.unlink(missing_ok=True)
    python = VENV / "bin" / "python"
    make = [sys.executable, "-m", "venv", str(VENV)]
    if not starts(python):
        make.append("--clear")
        if subprocess.run(make).returncode:
            return fail("python3 -m venv failed", "see above; on Debian and Ubuntu: apt-get install python3-venv")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
    wish = ["-c", str(INPUTS[1]), "-e", f"{ROOT}[{EXTRAS}]"]
    if not by_uv(pip, wish) and subprocess.run([*pip, *wish]).returncode:
        return fail("pip could not install everything", "see above; the next make goes on from here")
    STAMP.write_text(wanted)
    print(f".venv is complete after {time.monotonic() - started:.0f} s", flush=True)
    return 0


def by_uv(pip: list[str], wish: list[str]) -> bool:
    """Whether uv, itself from the index, has installed the wish: a quarter of pip's time; where it can't, pip does."""
    uv = [line for line in INPUTS[1].read_text().split() if line.startswith("uv==")]
    if not uv or subprocess.run([*pip, "-q", *uv]).returncode:
        return False
    options, environment = as_uv(subprocess.run([*pip[:3], "config", "list"], capture_output=True, text=True).stdout)
    # on the same disk: files are linked, not copied
    environment = {"UV_CACHE_DIR": str(VENV / "uv")} | environment | os.environ
    # all indexes count alike, as with pip
    asked = [str(VENV / "bin" / "uv"), "pip", "install", "--python", pip[0], "--index-strategy", "unsafe-best-match"]
    if not subprocess.run([*asked, *options, *wish], env=environment).returncode:
        return True
    print("uv could not install everything; pip tries it", flush=True)
    return False


def as_uv(config: str) -> tuple[list[str], dict[str, str]]:
    """Options and environment by which uv looks where pip does, from what `pip config list` prints."""
    options, environment = [], {}
    for line in config.splitlines():
        key, _, value = line.partition("=")
        name, value = key.rpartition(".")[2], value.strip("'\"").replace("\\n", " ")
        if name in PIP_AS_UV:
            options += [part for one in value.split() for part in (PIP_AS_UV[name], one)]
        elif name == "cert":
            environment["SSL_CERT_FILE"] = value
    return options, environment


def starts(python: Path) -> bool:
    """Whether this Python runs and has pip."""
    try:
        asked = [python, "-c", "import pip, sys; print(*sys.version_info[:2])"]
        answer = subprocess.run(asked, capture_output=True, text=True).stdout.split()
        return answer == [str(part) for part in sys.version_info[:2]]
    except OSError:
        return False


def fail(what: str, fix: str) -> int:
    """Say it on standard error."""
    print(f"{what}: {fix}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    # the system's Python, which may be older than the project's
    if sys.version_info < (3, 11):  # noqa: UP036
        found = ".".join(map(str, sys.version_info[:2]))
        sys.exit(fail(f"Python 3.11 or newer is needed, this is {found}", "name another with make PYTHON=python3.12"))
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        sys.exit(fail("Python's venv module is missing", "on Debian and Ubuntu: apt-get install python3-venv"))
    sys.exit(main())

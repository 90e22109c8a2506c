"""C compiled on first use and kept on disk: the library of one program, checked before it is loaded."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from zoogen.train.population.engine import NothingToCompileWith, Unsupported

log = logging.getLogger("zoogen")

# No -ffast-math: it would let the compiler reorder sums and drop the treatment of infinities. Multiply-adds may be
# fused; traps are not used.
_FLAGS = (
    "-O2",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-ffp-contract=fast",
    "-Wno-psabi",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fno-trapping-math",
)
_NATIVE = ("-march=native",) if sys.platform != "darwin" else ("-mcpu=native",)


@lru_cache(maxsize=1)
def compiler() -> tuple[str, str]:
    """The C compiler's path and its version line; ``$CC`` goes first.

    Raises:
        NothingToCompileWith: there is none.
    """
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        if path := shutil.which(name):
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if shown.returncode == 0:
                return path, shown.stdout.splitlines()[0]
    raise NothingToCompileWith("no C compiler was found (cc, gcc, clang or $CC); install one, e.g. apt install gcc")


def compiler_name() -> str | None:
    """The compiler's version line, None without one."""
    try:
        return compiler()[1]
    except NothingToCompileWith:
        return None


@lru_cache(maxsize=1)
def vector_bytes() -> int:
    """Width of the machine's vector registers, as its compiler sees them: 64 (AVX-512), 32 (AVX), 16 otherwise."""
    path, _ = compiler()
    shown = subprocess.run(
        [path, *_NATIVE, "-dM", "-E", "-xc", os.devnull], capture_output=True, text=True, check=False
    )
    macros = shown.stdout
    return 64 if "__AVX512F__" in macros else 32 if "__AVX__" in macros else 16


def load(text: str, defines: dict[str, str], cache: Path) -> ctypes.CDLL:
    """The shared library of a program, from ``cache`` or compiled now.

    A library is kept under the digest of all that determines it, beside its own digest; one that was damaged is
    compiled again, and none is loaded unchecked.

    Raises:
        Unsupported: no compiler, or it fails on the program.
    """
    path, version = compiler()
    command = [path, *_FLAGS, *_NATIVE, *(f"-D{name}={value}" for name, value in sorted(defines.items()))]
    key = hashlib.blake2b("\n".join([text, version, _cpu(), *command]).encode(), digest_size=16).hexdigest()
    folder = cache / "programs"
    library, seal = folder / f"{key}.so", folder / f"{key}.blake2b"
    if not _is_whole(library, seal):
        if library.exists():
            log.warning("%s is damaged and is made anew", library)
        _compile(text, command, library, seal)
    return ctypes.CDLL(str(library))


def _is_whole(library: Path, seal: Path) -> bool:
    try:
        return _digest(library) == seal.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _compile(text: str, command: list[str], library: Path, seal: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        source, made = Path(folder) / "program.c", Path(folder) / "program.so"
        source.write_text(text)
        done = subprocess.run(
            [*command, str(source), "-o", str(made), "-lm"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise Unsupported(f"the C compiler {command[0]} failed on the generated program: {first}")
        written = Path(folder) / "seal"
        written.write_text(_digest(made))
        # A reader between the two renames sees a seal that does not fit, and compiles for itself.
        written.replace(seal)
        made.replace(library)


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


@lru_cache(maxsize=1)
def _cpu() -> str:
    """What -march=native means here: a library must not travel to another kind of processor in a shared cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform

        return platform.processor() + platform.machine()
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features"))))

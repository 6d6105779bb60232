"""What the processor of this machine can do, as Linux names it."""

from pathlib import Path

FILE = Path("/proc/cpuinfo")
BF16, TILES = "avx512_bf16", "amx_bf16"  # products of bf16 by vectors, and by a unit for whole matrices


def features(file: Path = FILE) -> set[str]:
    """The features of the processor; none where nobody says."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())

"""Runs the tests beside this file against other versions of the libraries: `python -m tests.shared.library.versions`.

Every version goes into an environment of its own, which sees the packages of this one behind its own. Needs the network
for pip. What was run last is in docs/library.md.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[3]
OLDEST = ("timm==1.0.3", "open_clip_torch==2.24.0", "transformers==4.40.0")
VERSION = "from importlib.metadata import version; print(version('{}'))"
NEWEST = ("timm", "open_clip_torch", "transformers")


def run(requirement: str, folder: Path) -> bool:
    """Whether the tests pass with one package in this version, the others as they are here."""
    environment = folder / requirement.replace("=", "-")
    venv.create(environment, with_pip=True, symlinks=True)
    site = environment / f"lib/python{sysconfig.get_python_version()}/site-packages"
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin/python"
    alone = [] if requirement.startswith("transformers") else ["--no-deps"]  # whose tokenizers must fit
    pip = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--disable-pip-version-check", *alone, requirement]
    subprocess.run(pip, check=True)
    tests = [python, "-m", "pytest", "tests/shared/library", "-q", "-p", "no:cacheprovider", "--tb=line"]
    outcome = subprocess.run(
        tests, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    name = requirement.partition("=")[0]
    found = subprocess.run([python, "-c", VERSION.format(name)], capture_output=True, text=True, check=True).stdout
    failed = [line for line in outcome.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    passes = outcome.returncode == 0
    print(f"{name} {found.strip()}: {'all tests pass' if passes else 'some fail'}", *failed, sep="\n  ", flush=True)
    return passes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("versions", nargs="*", default=[*OLDEST, *NEWEST], help="as pip reads them")
    with tempfile.TemporaryDirectory() as folder:
        return int(not all([run(version, Path(folder)) for version in parser.parse_args().versions]))


if __name__ == "__main__":
    sys.exit(main())

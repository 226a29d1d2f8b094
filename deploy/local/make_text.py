#!/usr/bin/env python3
"""Makes ``models/texts/``: Jane Austen's novels, real long text to measure on (public domain).

They come from Debian's package ``r-cran-janeaustenr`` (1.6 MB), read without R and without root:

    models/texts/pride_and_prejudice.txt   about 168 K SmolLM2 tokens
    models/texts/austen.txt                all six, about 1 M tokens, in order of publication

Runs on a stock Python 3.11. Does nothing where both files are there.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from r_lazyload import read_character_vectors

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ROOT / "models" / "texts"
PACKAGE = "r-cran-janeaustenr"
NOVELS = (
    "sensesensibility",
    "prideprejudice",
    "mansfieldpark",
    "emma",
    "northangerabbey",
    "persuasion",
)
# Of pride_and_prejudice.txt from version 1.0.0, on which the recorded figures were measured.
KNOWN_SHA256 = "dfc684d4f857fa938268f9ab9c5567b64bd0691251eca959644adeabe6287a4d"


def say(line: str) -> None:
    print(f"[text] {line}", flush=True)


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def without_apt(target: Path, why: str) -> SystemExit:
    return SystemExit(
        f"[text] {why}\n"
        f"[text] {PACKAGE} is a Debian and Ubuntu package. Elsewhere any long text serves: put a\n"
        f"[text] UTF-8 file of your own at {target / 'pride_and_prejudice.txt'}\n"
        f"[text] (and one at {target / 'austen.txt'}), or make them from that\n"
        f"[text] package's .deb file with --deb FILE."
    )


def download(folder: Path, target: Path) -> Path:
    """Fetches the package's .deb into ``folder``."""
    if not shutil.which("apt-get"):
        raise without_apt(target, "This machine has no apt-get.")
    command = ["apt-get", "download", PACKAGE]
    if os.geteuid() == 0:  # else apt warns that its own user cannot write in a private folder
        command[1:1] = ["-o", "APT::Sandbox::User=root"]
    result = run(command, folder)
    if result.returncode:
        say("the package lists are missing or old: apt-get update")
        update = run(["apt-get", "update"], folder)
        result = run(command, folder)
        if result.returncode:
            raise without_apt(target, f"apt-get failed:\n{update.stderr}{result.stderr}")
    return next(folder.glob("*.deb"))


def unpack(deb: Path, folder: Path) -> dict[str, list[str]]:
    """The novels of a .deb file, by R's names: a list of lines each."""
    result = run(["dpkg-deb", "-x", str(deb), str(folder)], folder)
    if result.returncode:
        raise SystemExit(f"[text] dpkg-deb failed:\n{result.stderr}")
    return read_character_vectors(next(folder.rglob("janeaustenr/data/Rdata.rdb")))


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)
    say(f"{path.name}: {len(text):,} characters")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=TEXTS, help="folder to write to")
    parser.add_argument("--deb", type=Path, help=f"a {PACKAGE} .deb file already here")
    args = parser.parse_args()
    target: Path = args.out.resolve()
    one, all_six = target / "pride_and_prejudice.txt", target / "austen.txt"
    if one.exists() and all_six.exists():
        say(f"up to date: {target}")
        return 0
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"fetching and reading {PACKAGE}")
        lines = unpack(args.deb.resolve() if args.deb else download(folder, target), folder)
    novels = {novel: "\n".join(lines[novel]) + "\n" for novel in NOVELS}
    if hashlib.sha256(novels["prideprejudice"].encode()).hexdigest() != KNOWN_SHA256:
        say("note: another edition than the one that the recorded figures were measured on")
    # A file of the user's own is left as it is.
    if not one.exists():
        write(one, novels["prideprejudice"])
    if not all_six.exists():
        write(all_six, "\n".join(novels.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

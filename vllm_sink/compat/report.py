"""The results of the probes as text: ``vllm-sink doctor --hooks``, ``make compat``.

    python -m vllm_sink.compat.report 0.33.0

downloads that version's wheel and reads its sources; nothing is installed, and vLLM need not be.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from itertools import groupby
from pathlib import Path
from typing import Any

from vllm_sink.compat import probes
from vllm_sink.compat.hooks import Hook, Installed
from vllm_sink.compat.probes import Finding
from vllm_sink.compat.source import Source

_TITLES = {
    "wraps": "wrapped at run time",
    "replaces": "names bound to a class of this package",
    "adds": "fields added",
    "overrides": "overridden, in a subclass that a setting of vLLM's takes",
    "reads": "attributes that no interface promises",
    "imports": "names imported",
}
#: vLLM's wheels are built for several of them, and pip matches only those that are listed.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_31_x86_64", "manylinux1_x86_64")


def render(findings: list[Finding], version: str) -> str:
    """Every hook, where it attaches, and whether its probe holds."""
    lines = []
    for (package, kind), group in groupby(sorted(findings, key=_order), key=_section):
        found = list(group)
        failed = [f for f in found if not f.holds]
        title = _TITLES[kind]
        if package != "vllm":
            title = f"of {package.capitalize()}, {title.partition(',')[0]}"
        lines.append(f"{title}: {len(found) - len(failed)} of {len(found)} hold")
        for finding in failed if kind in ("reads", "imports") else found:
            lines.append(_line(finding))
    failed = [f for f in findings if not f.holds]
    tested = "tested" if version in probes.KNOWN_VERSIONS else "not tested"
    verdict = f"{len(failed)} of {len(findings)} probes fail" if failed else "every probe holds"
    return "\n".join([f"vLLM {version}, {tested}", *lines, f"vLLM {version}: {verdict}"])


def _section(finding: Finding) -> tuple[str, str]:
    """The package that a hook is in, and its kind."""
    return finding.hook.module.partition(".")[0], finding.hook.kind


def _order(finding: Finding) -> tuple[bool, int]:
    """vLLM's hooks first, kind by kind."""
    package, kind = _section(finding)
    return package != "vllm", list(_TITLES).index(kind)


def _line(finding: Finding) -> str:
    hook = finding.hook
    if not finding.holds:
        return f"  MISSING {hook.target}: {finding.problem} ({hook.why})"
    if not finding.where:
        return f"  absent  {hook.qualname}: not in this version, and not needed there"
    by = f"  by {hook.by.removeprefix('vllm_sink.')}" if isinstance(hook, Installed) else ""
    return f"  ok      {hook.qualname:<52} {finding.where}{by}"


def as_data(findings: list[Finding], version: str) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "vllm": version,
        "tested": version in probes.KNOWN_VERSIONS,
        "holds": all(f.holds for f in findings),
        "hooks": [
            {
                "kind": f.hook.kind,
                "target": f.hook.target,
                "where": f.where,
                "problem": f.problem,
                "why": f.hook.why,
                **_installed(f.hook),
            }
            for f in findings
        ],
    }


def _installed(hook: Hook) -> dict[str, Any]:
    """What is installed there, where, and until when."""
    if not isinstance(hook, Installed):
        return {}
    return {"by": hook.by, "places": list(hook.places), "until": hook.until}


def download(version: str, folder: Path) -> Source:
    """The Python sources of a version, from its wheel.

    Raises:
        SystemExit: pip found no such version, with pip's message.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--dest", str(folder)]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run(
        [*command, f"vllm=={version}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"vllm=={version}: {done.stderr.strip()}")
    with zipfile.ZipFile(next(folder.glob("vllm-*.whl"))) as wheel:
        sources = [name for name in wheel.namelist() if name.endswith(".py")]
        wheel.extractall(folder, [n for n in sources if n.startswith("vllm/")])
    return Source(folder / "vllm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="vllm_sink.compat.report", description=__doc__)
    parser.add_argument("version", help="of vLLM, such as 0.33.0")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"downloading vllm=={args.version} (0.3 GB)", file=sys.stderr, flush=True)
        findings = probes.check(download(args.version, Path(folder)))
    print(render(findings, args.version))
    return 0 if all(f.holds for f in findings) else 1


if __name__ == "__main__":
    sys.exit(main())

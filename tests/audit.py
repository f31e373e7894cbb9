"""Known holes in what constraints.txt installs: `make audit`, by pip-audit, which asks PyPI's advisory service.

Exit codes: 0 nothing known; 1 holes were found; 2 NOT CHECKED: the service could not be reached, or knows none of the
packages, as a mirror without advisories does. 2 says nothing about the packages.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
NOTHING, HOLES, NOT_CHECKED = 0, 1, 2


def verdict(dependencies: Sequence[dict[str, Any]]) -> tuple[int, list[str]]:
    """Exit code and sentences from pip-audit's JSON: per dependency `vulns`, or a `skip_reason`."""
    known = [one for one in dependencies if "skip_reason" not in one]
    skipped = [one["name"] for one in dependencies if "skip_reason" in one]
    holes = [
        f"{one['name']} {one['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in known
        for hole in one["vulns"]
    ]
    if not known:
        return NOT_CHECKED, [f"NOT CHECKED: the service knows none of the {len(skipped)} packages (a mirror, offline?)"]
    words = [f"{len(known)} packages checked, {len(holes)} known holes"]
    if skipped:
        words.append(f"not checked, unknown to the service: {', '.join(skipped)}")
    return (HOLES if holes else NOTHING), [*words, *holes]


def audit(file: Path, seconds: int) -> tuple[int, list[str]]:
    """Ask about the packages of a requirements file."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(file), "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--timeout", "15"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return NOT_CHECKED, [f"NOT CHECKED: no answer within {seconds} s"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return NOT_CHECKED, [f"NOT CHECKED: the advisory service could not be asked: {last[:300]}"]
    return verdict(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=300, help="that the whole audit may take")
    code, words = audit(CONSTRAINTS, parser.parse_args().seconds)
    print("\n".join(words))
    return code


if __name__ == "__main__":
    sys.exit(main())

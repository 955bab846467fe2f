"""`python -m gitdistill check`: is everything there that gitdistill needs, and does each device compute right?"""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from gitdistill.models.storage import first_line
from gitdistill.use.device import VARIABLE, choose_device, found_devices, self_test


def main(arguments: list[str]) -> int:
    """Print a line for each package and device, OK or FAIL; the number of failures that matter."""
    parser = argparse.ArgumentParser("gitdistill check", description=__doc__)
    parser.add_argument("--device", help=f"test and prefer this one; or set {VARIABLE}")
    device = parser.parse_args(arguments).device
    failures = sum(not say(*line) for line in [*packages(), *devices(device)])
    print(f"{failures} failed" if failures else "all is well")
    return int(failures > 0)


def say(fine: bool, what: str) -> bool:
    print(f"{'OK  ' if fine else 'FAIL'} {what}", flush=True)
    return fine


def packages():
    """(fine, what) for Python and each package of the main list; extras only where they are installed."""
    yield True, f"python {platform.python_version()}"
    for requirement in map(Requirement, requires("gitdistill") or []):
        extra = requirement.marker is not None
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            if not extra:
                yield False, f"{requirement.name} is missing; {requirement} is needed"
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        yield (
            fits,
            f"{requirement.name} {found}" + ("" if fits else f", but {requirement.specifier} is needed"),
        )


def devices(asked: str | None):
    """(fine, what) for each device found, tested against the CPU, and for the one that would be taken."""
    for device in found_devices():
        wrong = self_test(device)
        yield wrong is None, f"device {device}" + (f": {wrong}" if wrong else " computes what the CPU does")
    try:
        chosen = choose_device(asked)
    except ValueError as error:
        yield False, first_line(error)
        return
    why = "asked for" if asked else f"from {VARIABLE}" if os.environ.get(VARIABLE) else "the best here"
    yield True, f"would compute on {chosen} ({why})"

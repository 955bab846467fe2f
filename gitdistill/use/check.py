"""`python -m gitdistill check`: are all needed packages installed, and does each device compute what the CPU does?"""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from gitdistill.models import precision
from gitdistill.models.storage import first_line
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.use.device import VARIABLE, choose_device, found_devices, self_test


def main(arguments: list[str]) -> int:
    """Print a line for each package and device, OK or FAIL; 1 if any failed, otherwise 0."""
    parser = argparse.ArgumentParser("gitdistill check", description=__doc__)
    parser.add_argument("--device", help=f"test and prefer this one; or set {VARIABLE}")
    device, failures = parser.parse_args(arguments).device, 0
    for checks in (packages(), devices(device)):
        for passed, line in checks:
            print(f"{'OK  ' if passed else 'FAIL'} {line}", flush=True)
            failures += not passed
    print(f"{failures} failed" if failures else "all is well")
    return int(failures > 0)


def packages():
    """(passed, line) for Python and each required package; optional packages only where they are installed."""
    yield True, f"python {platform.python_version()}"
    listed = map(Requirement, requires("gitdistill") or [])
    for requirement in (one for one in listed if one.name != "gitdistill"):  # one extra may name another
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            if requirement.marker is None:  # otherwise an extra's
                yield False, f"{requirement.name} is missing; {requirement} is needed"
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        needed = "" if fits else f", but {requirement.specifier} is needed"
        yield fits, f"{requirement.name} {found}{needed}"


def devices(asked: str | None):
    """(passed, line) for each device found, tested against the CPU, and for the one that would be chosen."""
    for device in found_devices():
        wrong = self_test(device)
        yield wrong is None, f"device {device}" + (f": {wrong}" if wrong else " computes what the CPU does")
    try:
        chosen = choose_device(asked)
    except ValueError as error:
        yield False, first_line(error)
        return
    why = "asked for" if asked else f"from {VARIABLE}" if os.environ.get(VARIABLE) else "the best here"
    fast = precision.fast_dtype(chosen.type)
    yield True, f"would compute on {chosen} ({why}); fastest there: {fast}"
    if fast != "float32":
        model = GenerativeImageTextTeacher.from_pretrained("toybox", device=chosen).model
        same = precision.chosen_dtype("auto", model, stored=True) == fast
        what = f"says the same of noise in {fast}" if same else f"says something else of noise in {fast}"
        yield True, f"the embedded teacher {what}: auto computes it in {fast if same else 'float32'}"

"""Command line: `python -m gitdistill fit|validate|test|caption|check|onnx|pack|page|plan`; modules: see below."""

import os
import re
import sys
from argparse import ArgumentError
from importlib import import_module

from gitdistill.escape import one_line

COMMANDS = {  # all others are Lightning's, in gitdistill.use.fit
    "caption": "gitdistill.use.caption",
    "check": "gitdistill.use.check",
    "onnx": "gitdistill.use.onnx_export",
    "pack": "gitdistill.data.shards",
    "page": "gitdistill.use.page",
    "plan": "gitdistill.use.plan",
}
# Of a student in a configuration, what it has from its teacher, but not all of it.
SHARED = r"(?s)(required: vocab_size|torch.nn.Module').*StudentMaker'> [^\n]*'(vocab_size|num_frames|\w+_id)' is not"
# What jsonargparse says, in five lines, of all values that it would have taken for a class.
FORMS = r"\n *Subclass types expect one of:(\n *- a [^\n]*)+"
MISTAKES = (ValueError, KeyError, OSError, ImportError, ArgumentError)  # errors that a user can mend


def main() -> None:
    command, *arguments = sys.argv[1:] or [""]
    try:
        module = COMMANDS.get(command, "gitdistill.use.fit")
        if module in ("gitdistill.use.fit", "gitdistill.use.plan"):
            import_module("gitdistill.use.config").limit_configurations()
        sys.exit(import_module(module).main(arguments))
    except KeyboardInterrupt:  # what was written stays
        print("\ngitdistill: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output, for example head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MISTAKES as error:
        if os.environ.get("GITDISTILL_DEBUG"):  # then with its traceback
            raise
        sys.exit(f"gitdistill: {one_line(reason(error))}")


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, ArgumentError):
        text = error.message
    if text.startswith("Caught ") and "Original Traceback" in text:  # raised in a loader's process
        return text.strip().splitlines()[-1].partition(": ")[2]
    if re.search(SHARED, text):
        shared = "its teacher's vocabulary, special tokens and number of frames"
        return f"a student has {shared}: leave them out of the configuration, or write vocab_size, too"
    text = re.sub(FORMS, " (give a class path, or a mapping with class_path and init_args)", text)
    # Where several types are allowed, jsonargparse lists the errors of all of them, and then the value given. The
    # innermost list is what matters, without what only says that another type would do.
    heading, several, rest = text.rpartition("Errors:\n")
    if not several:
        return " ".join(text.split()) if isinstance(error, ArgumentError) else text.partition("\n")[0]
    attempts = re.split(r"^ *- ", rest.partition("Given value")[0], flags=re.MULTILINE)
    errors = dict.fromkeys(" ".join(attempt.split()) for attempt in attempts if attempt.strip())
    others = "Expected a <class 'NoneType'>", "expects a function or a callable class"
    errors = [error for error in errors if not any(other in error for other in others)] or errors
    keys = re.findall(r'Parser key ".+?":', heading)
    return f"{keys[-1]} {'; '.join(errors)}" if keys else "; ".join(errors)


if __name__ == "__main__":
    main()

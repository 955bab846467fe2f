"""Activations by module path: `record` sees them, `edit` replaces them; both remove their hooks.

    with record(student, ["backbone.net.stages_2", "layers.*.cross_attention.softmax"]) as seen:
        student(frames, tokens)
    seen["backbone.net.stages_2"][0]        # the output of the first call
    with edit(student, {"memory_norm": torch.zeros_like}):
        student(frames, tokens)             # as if it saw nothing

After baukit's `Trace` (https://github.com/davidbau/baukit). Attention weights are activations like any other: every
attention module of this package has a child `softmax`, TinyViT's too (`….attn.softmax`).
"""

import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn


class Recording(dict):
    """Module path -> its captured outputs, one entry a call, in the order of the model's modules."""

    def __missing__(self, path: str):
        raise KeyError(f"{path} was not recorded{suggest(path, self)}")


def paths(model: nn.Module, pattern: str = "*") -> list[str]:
    """The module paths that `pattern` matches, in the model's order, without the model itself (the empty path).

    `*` stands for any characters, dots included: "layers.*" is everything below `layers`. `?` is one character, so
    "layers.?" is the first ten layers themselves.
    """
    named = (path for path, _ in model.named_modules(remove_duplicate=False))
    return [path for path in named if path and fnmatchcase(path, pattern)]


@contextmanager
def record(model: nn.Module, names: str | list[str], detach: bool = True) -> Iterator[Recording]:
    """Capture what the named modules return, for as long as the context lasts.

    Args:
        model: any module, such as a teacher, a student, or a part of one.
        names: module paths, or patterns as in `paths`.
        detach: cut the captured tensors off the graph. Must be False for a loss on what was captured.

    Yields a `Recording` of copies, which later changes in place do not reach. When the context exits, modules that were
    matched but not called (containers, say) are removed from it, and all hooks from the model. Raises KeyError when a
    name matches no module, and at the end RuntimeError when no module that a name matches was called.
    """
    matched = match(model, [names] if isinstance(names, str) else names)
    wanted = {path for found in matched.values() for path in found}
    recording = Recording({path: [] for path in paths(model) if path in wanted})
    with ExitStack() as handles:
        for path, captured in recording.items():
            handle = model.get_submodule(path).register_forward_hook(catcher(captured, detach))
            handles.callback(handle.remove)
        yield recording
    for name, found in matched.items():
        if not any(recording[path] for path in found):
            raise RuntimeError(f"nothing was captured at {name}: the model did not call it while recording")
    for path in [path for path, captured in recording.items() if not captured]:
        del recording[path]


@contextmanager
def edit(model: nn.Module, changes: dict[str, Callable]) -> Iterator[None]:
    """Replace what the named modules return, for as long as the context lasts.

    Args:
        changes: module path, or pattern as in `paths` -> a function of the module's output that gives the new output.
            It is called at every call of the module. One that gives its argument back changes no bit, except at a
            `softmax`: attention takes another kernel as soon as anybody listens there.

    Hooks run in the order in which they were made: a `record` that was entered before sees what the module returned,
    one that was entered inside sees the edited output. Errors are as for `record`; ValueError for a function that
    gives None.
    """
    edited, matched = set(), match(model, changes)

    def editor(name: str, change: Callable):
        def hook(module: nn.Module, inputs: tuple, output: Any) -> Any:
            edited.add(name)
            if (new := change(output)) is None:
                raise ValueError(f"the edit of {name} gives None: it must return the new output")
            return new

        return hook

    with ExitStack() as handles:
        for name, found in matched.items():
            for path in found:
                hook = model.get_submodule(path).register_forward_hook(editor(name, changes[name]))
                handles.callback(hook.remove)
        yield
    if idle := [name for name in matched if name not in edited]:
        raise RuntimeError(f"nothing was edited at {idle[0]}: the model did not call it while editing")


def match(model: nn.Module, names) -> dict[str, list[str]]:
    """Each name with the module paths that it matches; KeyError for one that matches nothing."""
    found = {name: paths(model, name) for name in names}
    for name in found:
        if not found[name]:
            raise KeyError(f"no module is called {name}{suggest(name, paths(model))}")
    return found


def suggest(path: str, known) -> str:
    """The most similar known paths, as the end of a sentence."""
    near = difflib.get_close_matches(path, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""


def catcher(captured: list, detach: bool):
    """A forward hook that appends copies to this one list."""

    def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
        captured.append(copied(output, detach))

    return hook


def copied(value: Any, detach: bool) -> Any:
    """`value` with every tensor in it cloned; tuples, lists, dicts and dataclasses of tensors are copied likewise."""
    if isinstance(value, Tensor):
        return (value.detach() if detach else value).clone()
    if dataclasses.is_dataclass(value) and not isinstance(value, type | dict):
        fields = {f.name: copied(getattr(value, f.name), detach) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        twin = copy.copy(value)  # of its own kind: transformers' outputs are dicts, too
        for key, item in value.items():
            twin[key] = copied(item, detach)
        return twin
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(copied(item, detach) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(copied(item, detach) for item in value)
    return value

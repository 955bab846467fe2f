"""A limit for configurations: a few lines of YAML whose aliases name one another may stand for billions of values."""

import yaml
from jsonargparse import get_loader, set_loader

VALUES, DEPTH = 200_000, 100  # most values, aliases resolved, and lists or mappings in one another


def limit_configurations() -> None:
    """From now on jsonargparse refuses larger ones, in one line."""
    load = get_loader("yaml")

    def load_checked(text: str):
        check_size(text)
        return load(text)

    set_loader("yaml", load_checked, (yaml.YAMLError,))


def check_size(text: str) -> None:
    """A YAMLError when there is too much in a YAML text, or when it contains itself."""
    sizes, open_nodes = {}, [[None, 0]]  # anchor -> values in it; [anchor, values so far] of what is open
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor, 0])
            size = 0
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise yaml.YAMLError(f"the alias *{event.anchor} contains itself")
            size = sizes.get(event.anchor, 1)
        else:
            size = 1
        open_nodes[-1][1] += size
        if open_nodes[-1][1] > VALUES or len(open_nodes) > DEPTH:
            raise yaml.YAMLError(f"more than {VALUES:,} values, aliases resolved, or {DEPTH} levels")

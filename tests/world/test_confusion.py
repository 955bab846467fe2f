"""Which word is said for which toy."""

import numpy as np

from gitdistill.world import Scene, Toy
from gitdistill.world.confusion import confusion_maps, confusions
from gitdistill.world.lexicon import OBJECTS


def scenes(*rows):
    return [Scene([Toy(name) for name in row]) for row in rows]


def test_a_named_toy_is_right_and_the_others_share_what_is_left():
    shown = scenes(["cat", "bell"], ["cat"], ["cat"], ["cat", "bell"])
    said = ["a bell and a dog", "two cats", "", "a cat"]
    named = {("bell", "bell"): 1, ("cat", "dog"): 1, ("cat", "cat"): 2}
    assert confusions(said, shown) == named | {("cat", None): 1, ("bell", None): 1}


def test_what_is_left_goes_to_the_most_alike():
    goat = next(name for name in OBJECTS if name != "ram" and OBJECTS[name].group == OBJECTS["ram"].group)
    for said in (f"a book and a {goat}", f"a {goat} and a book"):
        assert confusions([said], scenes(["bell", "ram"])) == {("ram", goat): 1, ("bell", "book"): 1}
        for toys in (["cat", "ram"], ["ram", "cat"]):  # each is a little like both words, being an animal
            found = confusions([said.replace("book", "dog")], scenes(toys))
            assert found == {("ram", goat): 1, ("cat", "dog"): 1}


def test_maps_hold_shares_of_each_toy_that_is_often_wrong():
    shown = scenes(["cat"], ["cat"], ["dog"], ["bell"])
    said = {0: ["", "", "", ""], 9: ["a cat", "a dog", "a book", "a bell"]}
    steps = {step: confusions(captions, shown) for step, captions in said.items()}
    maps, rows, columns = confusion_maps(steps, size=2)
    assert rows == ["cat (2)", "dog (1)"] and sorted(columns[1:3]) == ["book", "dog"]
    assert [columns[0], *columns[3:]] == ["right", "another", "none"]
    np.testing.assert_array_equal(maps[0], [[0, 0, 0, 0, 1]] * 2)
    cat, dog = ({name: share for name, share in zip(columns, row) if share} for row in maps[9])
    assert cat == {"right": 0.5, "dog": 0.5} and dog == {"book": 1.0}
    maps, rows, columns = confusion_maps(steps | {5: confusions(["a book", "", "", ""], shown)}, size=1)
    assert columns == ["right", "dog", "another", "none"]
    np.testing.assert_array_equal(maps[5], [[0, 0, 0.5, 0.5]])

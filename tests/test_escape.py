"""Texts of others where they are shown."""

import json

import pytest
import tiny

from gitdistill.escape import markdown, one_line
from gitdistill.use.captioner import Captioner, Student
from gitdistill.world.module import toybox_tokenizer


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb\r\tc", "\x9b", "\u2028", "a\u202eb", "\udce9", "\x7f\x00"])
def test_control_characters_are_written_out(text):
    for shown in (one_line(text), one_line(json.dumps(text, ensure_ascii=False))):
        assert shown.isprintable() and shown.isascii()
    assert json.loads(shown) == text
    good = "caf\u00e9 \u661f\u3000\u06cc\u200c\u0645 \U0001f468\u200d\U0001f469 $5 a_b\\c"
    assert one_line(good) == good


def test_the_model_card_shows_names_as_they_are():
    student = Student(tiny.student().eval(), toybox_tokenizer())
    assert isinstance(student, Captioner) and "| test/cider | 1.5 |" in _card(student, "test/cider")
    marked_up = ["<script>x</script>", "![x](http://y)", "`x`", "a\n# b", "$x$", "**b**"]
    for name in [*marked_up, "a | b", "www.y.z", "&lt;"]:
        shown = _card(student, name).splitlines()[-1]
        assert shown.startswith("| ") and shown.endswith(" | 1.5 |") and shown.count("|") == 3
        assert not set("<>`[]!*$:") & set(shown) and "www." not in shown
    assert markdown("a <b>") == "a &#60;b&#62;"


def _card(student, name):
    student.scores = {name: 1.5}
    return student.card()

"""The teacher: frozen, always in eval mode, with a tokenizer that fits; and its captions."""

import pytest
import torch
from tiny_git import lively_git, random_inputs, tokenizer
from torch.testing import assert_close
from transformers import GitForCausalLM

import gitdistill
import gitdistill.models
from gitdistill.decoding import beam, greedy, sample
from gitdistill.distillation.caption_trainer import CaptionTrainer
from gitdistill.models import checkpoints
from gitdistill.models.git import GenerativeImageTextModel
from gitdistill.models.preprocessing import CLIP_MEAN, CLIP_STD, to_pixels
from gitdistill.models.teacher import GenerativeImageTextTeacher
from gitdistill.models.tokenizer import load_tokenizer, to_text
from gitdistill.world.scenes import Clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip captioner with its tokenizer, whose captions differ from clip to clip and search to search."""
    folder = tmp_path_factory.mktemp("teacher")
    lively_git(0, frames=3).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def teacher(folder):
    return GenerativeImageTextTeacher.from_pretrained(folder)


@pytest.fixture(scope="module")
def embedded():
    return GenerativeImageTextTeacher.from_pretrained("toybox")


def clips(count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 3, 20, 24), dtype=torch.uint8, generator=generator)


def test_public_names():
    others = {"DistillationTrainer", "load_student", "load_teacher", "__version__"}
    assert set(gitdistill.__all__) - set(gitdistill.models.__all__) == others
    for name in gitdistill.models.__all__:
        assert getattr(gitdistill, name) is getattr(gitdistill.models, name)
    with pytest.raises(AttributeError, match="module 'gitdistill' has no attribute 'Nothing'"):
        gitdistill.Nothing  # noqa: B018


def test_frozen_in_eval_mode_and_without_gradients(teacher):
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    parent = torch.nn.ModuleList([teacher, torch.nn.Dropout()]).train()
    assert parent[1].training and not any(module.training for module in teacher.modules())
    pixels, tokens = random_inputs(frames=3)
    pixels.requires_grad_(True)
    assert not teacher(pixels, tokens).logits.requires_grad
    logits, _ = teacher.decode_step(tokens, teacher.prefill(pixels))
    assert not logits.requires_grad


def test_output_and_decoding_are_the_models(teacher, folder):
    model = GenerativeImageTextModel.from_pretrained(folder)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "max_positions")
    assert [getattr(teacher, name) for name in names] == [getattr(model, name) for name in names]
    pixels, tokens = random_inputs(frames=3, captions=2)
    output, expected = teacher(pixels, tokens), model(pixels, tokens)
    assert_close(output.logits, expected.logits)
    assert_close(output.visual_features, expected.visual_features)
    assert_close(output.hidden_states, expected.hidden_states)
    assert torch.equal(greedy(teacher, clips(), 9).tokens, greedy(model, clips(), 9).tokens)


@pytest.mark.parametrize("options", [{}, {"beams": 3}])
def test_captions_equal_those_of_transformers(teacher, folder, options):
    port = GitForCausalLM.from_pretrained(folder).eval()
    pixels, _ = random_inputs(clips=4, frames=3)
    beams = options.get("beams", 1)
    generated = port.generate(pixel_values=pixels, max_length=9, num_beams=beams, do_sample=False)
    captions = teacher.caption(pixels, max_length=9, **options)
    assert captions == tokenizer().batch_decode(generated, skip_special_tokens=True)
    assert all(captions) and len(set(captions)) > 1


def test_caption_chooses_the_search(teacher):
    frames = clips()
    by_beams = to_text(beam(teacher, frames, beams=4, max_length=8).tokens[:, 0], tokenizer())
    assert teacher.caption(frames, beams=4, max_length=8) == by_beams
    assert teacher.caption(frames, beams=4, max_length=8, num_return=3) == by_beams  # the best of each clip
    assert teacher.caption(frames, beams=1, max_length=8) == teacher.caption(frames, max_length=8) != by_beams
    drawn = to_text(sample(teacher, frames, 8, temperature=2.0, seed=1).tokens[:, 0], tokenizer())
    assert teacher.caption(frames, max_length=8, temperature=2.0, seed=1) == drawn
    assert teacher.caption(frames, max_length=8, seed=2) != drawn != teacher.caption(frames, max_length=8)
    with pytest.raises(ValueError, match="beams"):
        teacher.caption(frames, beams=0, max_length=8)


def test_questions_of_different_lengths_in_one_batch(teacher, folder):
    """As transformers answers them one by one."""
    port = GitForCausalLM.from_pretrained(folder).eval()
    questions, frames = ["a b", "c", "d e f g"], clips()
    pixels = to_pixels(frames, teacher.config.vision_config.image_size, CLIP_MEAN, CLIP_STD)
    for beams in (1, 3):
        answers = teacher.caption(frames, prefix=questions, beams=beams, max_length=11)
        for question, pixel, answer in zip(questions, pixels, answers):
            given = {
                "pixel_values": pixel[None],
                "input_ids": tokenizer()(question, return_tensors="pt").input_ids[:, :-1],
            }
            generated = port.generate(**given, max_length=11, num_beams=beams, do_sample=False)
            assert answer == tokenizer().decode(generated[0], skip_special_tokens=True)
            assert answer.startswith(question) and len(answer) > len(question)
    same = teacher.caption(frames, prefix="a b", max_length=11)
    assert same == teacher.caption(frames, prefix=["a b"] * 3, max_length=11)
    assert same == teacher.caption(frames, prefix=torch.tensor([2, 5, 6]), max_length=11)


def test_a_tokenizer_may_be_a_folder(folder):
    """As for the trainers: a path is loaded, and a tokenizer stays."""
    teacher = GenerativeImageTextTeacher.from_pretrained(folder, tokenizer=str(folder))
    assert teacher.caption(clips(), max_length=9)
    assert load_tokenizer(teacher.tokenizer) is teacher.tokenizer
    assert CaptionTrainer(teacher, folder).tokenizer.get_vocab() == teacher.tokenizer.get_vocab()


def embedded_clips(teacher, count):
    """Frames and tokens of clips of the embedded world."""
    examples = list(Clips("test", count))
    captions = [clip.captions[0] for clip in examples]
    tokens = teacher.tokenizer(captions, padding=True, return_tensors="pt").input_ids
    return torch.stack([clip.frames for clip in examples]), tokens


def test_bfloat16_moves_little(embedded):
    """Logits by hundredths of their spread, hardly a caption."""
    half = GenerativeImageTextTeacher.from_pretrained("toybox", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    frames, tokens = embedded_clips(embedded, 6)
    expected, output = embedded(frames, tokens), half(frames, tokens)
    assert output.logits.dtype == torch.bfloat16
    drift = (output.logits.float() - expected.logits).abs()
    assert 0 < drift.mean() < 0.05 * expected.logits.std()
    ours, theirs = (beam(teacher, frames, 3, 20) for teacher in (half, embedded))
    assert (ours.tokens == theirs.tokens).all(-1).sum() >= 4
    assert ours.scores.dtype == torch.float32
    assert_close(ours.scores, theirs.scores, atol=0.1, rtol=0)


def test_transformers_agrees_on_the_embedded_teacher(embedded):
    port = GitForCausalLM.from_pretrained(checkpoints.embedded("teacher")).eval()
    frames, tokens = embedded_clips(embedded, 6)
    pixels = to_pixels(frames, embedded.config.vision_config.image_size, CLIP_MEAN, CLIP_STD)
    with torch.no_grad():
        expected = port(input_ids=tokens, pixel_values=pixels).logits[:, -tokens.shape[1] :]
    assert_close(embedded(frames, tokens).logits, expected, atol=1e-4, rtol=0)
    generated = port.generate(pixel_values=pixels, max_length=embedded.max_positions, do_sample=False)
    captions = embedded.caption(frames, max_length=embedded.max_positions)
    assert captions == embedded.tokenizer.batch_decode(generated, skip_special_tokens=True)
    assert len(set(captions)) == len(captions)

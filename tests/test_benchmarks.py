"""The benchmarks, on networks of a few thousand parameters."""

import json
import sys
from itertools import product

import decoding as benchmark
import formats
import gpu
import pytest
import readme
import scale
import step
import tiny
import torch
import use as captioning
from tiny_git import git_config
from torch.utils.flop_counter import FlopCounterMode

from gitdistill.use.captioner import Captioner
from gitdistill.world import ToyboxData, toybox_tokenizer


@pytest.fixture(scope="module")
def result():
    config = git_config(frames=6, max_position_embeddings=24)
    rows = benchmark.run(config, batches=[2], repeats=2, progress=lambda line: None)
    return rows | {"precision": benchmark.precision(clips=6), "compiled": []}


def test_every_case_is_measured(result):
    cases = [(row["input"], row["batch"], row["beams"]) for row in result["rows"]]
    assert cases == list(product(("image", "6 frames"), (2,), (1, 4)))
    for row in result["rows"]:
        assert len(row["all_seconds"]["ours"]) == 2 and min(row["seconds"].values()) > 0
        assert row["faster"] == pytest.approx(row["seconds"]["theirs"] / row["seconds"]["ours"])
        assert row["over_floor"] == pytest.approx(row["seconds"]["ours"] / row["seconds"]["floor"])
        assert min(row["parts"].values()) > 0
        assert sum(row["parts"].values()) == pytest.approx(row["seconds"]["ours"], rel=0.5)


def test_the_floor_does_the_products_of_greedy_search():
    _, model = benchmark.twins(git_config(max_position_embeddings=24))
    pixels = torch.randn(1, 3, 16, 16)
    with FlopCounterMode(display=False) as floor:
        benchmark.floor(model, pixels, 1)
    with FlopCounterMode(display=False) as ours:
        benchmark.ours(model, pixels, 1)
    assert floor.get_total_flops() == pytest.approx(ours.get_total_flops(), rel=0.02)


def test_precision_is_measured_against_float32(result):
    full, half = result["precision"][:2]
    assert full["drift"] == 0 and full["same_1"] == full["same_4"] == 1
    assert 0 < half["drift"] < 0.1 * half["spread"] and half["same_1"] >= 0.5


def test_compiling_moves_no_feature():
    lines = []
    rows = benchmark.compiled(git_config(), [2], 1, progress=lines.append)
    assert len(rows) + len(lines) == 1  # there is a compiler, or it says that there is none
    for row in rows:
        assert row["drift"] < 1e-5 * row["spread"]
        assert min(row["eager"], row["compiled"], row["compiling"]) > 0


def test_different_tokens_are_no_result():
    port, model = benchmark.twins(git_config(max_position_embeddings=24))
    with torch.no_grad():
        model.head.bias[7] += 100
    with pytest.raises(AssertionError, match="different tokens with 1 beams"):
        benchmark.compare(port, model, torch.randn(1, 3, 16, 16), 1, 1)


def test_files_and_table(result, tmp_path):
    benchmark.write(result, tmp_path)
    assert json.loads((tmp_path / "decoding.json").read_text()) == result
    assert (tmp_path / "decoding.png").read_bytes().startswith(b"\x89PNG")
    tables = benchmark.tables(result)
    assert len(tables["decoding"]) == 2 + len(result["rows"])
    assert tables["decoding"][2].startswith("| image, greedy, batch 2 |")
    assert tables["precision"][2].startswith("| bfloat16 | ")
    page = "".join(f"before\n<!-- {name} -->\n%s\n<!-- end of {name} -->\nafter\n" for name in tables)
    new = tuple("\n".join(lines) for lines in tables.values())
    assert readme.filled(page % ("old", "old", "old"), tables) == page % new
    with pytest.raises(ValueError, match="one pair of markers"):
        readme.filled("", tables)


def test_every_form_of_a_git_is_measured():
    pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
    config = git_config(frames=6, max_position_embeddings=24)
    result = formats.run(config, repeats=2, progress=lambda line: None)
    for row in result["cases"]:
        assert len(row["seconds"]) == 5 and min(row["seconds"].values()) > 0
        assert [row["same"][name] for name in formats.EXACT] == [1, 1] and min(row["same"].values()) >= 0
        assert row["faster"]["ONNX, int8"] == row["seconds"][formats.GENERATE] / row["seconds"]["ONNX, int8"]
    assert result["megabytes"][formats.HALF] == result["megabytes"][formats.FULL] / 2
    lines = formats.table(json.loads(json.dumps(result)))
    assert len(lines) == 2 + 5 and len({line.count("|") for line in lines}) == 1
    assert result["machine"]["processor"] in lines[0]


def test_other_tokens_of_onnx_are_no_result():
    port, model = benchmark.twins(git_config(frames=6, max_position_embeddings=24))
    with torch.no_grad():
        model.head.bias[7] += 100
    with pytest.raises(AssertionError, match="ONNX, float32, 1 beams"):
        formats.compare(port, {"ONNX, float32": model}, 6, 1, 1)


def test_a_step_of_every_combination_of_losses_is_timed():
    sizes = {"train_clips": 6, "batch_size": 2, "num_frames": tiny.FRAMES, "image_size": tiny.SIDE}
    data = ToyboxData(**sizes, fresh_captions=False, captions_per_clip=2)
    result = step.run(tiny.teacher(), tiny.student(), data, batches=2)
    for rows in result["backbone"].values():
        assert [row["losses"] for row in rows] == list(step.CASES)
        assert rows[0]["times"] == 1 and min(row["seconds"] for row in rows) > 0
        for row in rows:
            assert row["times"] == pytest.approx(row["seconds"] / rows[0]["seconds"])
    assert len(step.table(result).splitlines()) == 2 + len(step.CASES)
    json.dumps(result)


def test_each_part_of_the_benchmark_of_a_card_runs_on_a_cpu():
    cpu, seen = torch.device("cpu"), []
    last = {part: (part, *rest) for part, *rest in gpu.Bench(cpu, small=True).cases()}
    rows = gpu.run(last.values(), cpu, 8, lambda rows: seen.append(len(rows)))
    assert [row["part"] for row in rows] == ["peak", "parity", "captions", "training", "faster"]
    assert seen == [1, 2, 3, 4, 5] and not [row for row in rows if {"error", "skipped"} & row.keys()], rows
    parity, captions, training, faster = rows[1:]
    assert parity["logits off by"] < 1e-4 and parity["same, beams 4"] == 1
    assert captions["generate: same"] > 0.5 and captions["ms"] > 0 and "static: error" in captions
    assert training["ms"] > 0 and faster["off by"] < 0.1


def test_what_fails_or_no_longer_fits_is_named_and_the_rest_runs(tmp_path, capsys):
    def fail():
        raise RuntimeError("no room\nanywhere")

    cases = [("a", "long", 99, dict), ("a", "broken", 1, fail), ("b", "fine", 1, lambda: {"ms": 2.0})]
    rows = gpu.run(cases, torch.device("cpu"), 0.5, lambda rows: None)
    results = [{"skipped": "no time left"}, {"error": "RuntimeError: no room"}, {"ms": 2.0}]
    assert [{k: row[k] for k in row if k not in ("part", "case")} for row in rows] == results
    assert gpu.main(["--small", "--minutes", "0", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(rows) > 15 and all("skipped" in row for row in rows)
    printed = capsys.readouterr().out
    assert printed.count("no time left") == len(rows) and printed == (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what memory is a process's own")
def test_every_measure_of_a_large_set_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "PICTURES", 5)
    result = scale.run(tmp_path, {"train": 40, "val": 3, "test": 2}, batches=1, rounds=1)
    assert result["construct"]["clips"] == {"train": 40, "val": 3, "test": 2}
    assert len(result["workers"]) == scale.WORKERS
    assert 0 < min(result["workers"]) < result["construct"]["peak"]
    assert list(result["rates"]) == ["FileData", 'FileData, resize="fast"', "bare loop", "torchvision"]
    assert min(result["rates"].values()) > 0 and result["machine"]["cpu"]
    assert len(scale.table(result)) == 5 + len(result["rates"])
    json.dumps(result)


def test_the_bare_loop_reads_what_filedata_reads(tmp_path, monkeypatch):
    """Otherwise their rates could not be compared."""
    monkeypatch.setattr(scale, "PICTURES", 4)
    made = scale.data(scale.write(tmp_path, {"train": 4}), ["train"])
    (batch,) = made.pool_dataloader()
    assert batch["frames"][:, 0].equal(scale.bare([item.path for item in made.source("train")]))


def test_every_task_of_captioning_files_is_measured(tmp_path):
    captioners = {"student": Captioner(tiny.student().eval(), toybox_tokenizer(), decoding={"max_length": 5})}
    pictures, video = captioning.make_pictures(tmp_path, 5), captioning.make_video(tmp_path / "clip.mp4", 4)
    lines = list(captioning.report(captioners, pictures, video, 4, 2))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    tasks = ["5 pictures, 2 at once", "a video of 4 s as one clip", "captions of 2 s, one a second"]
    assert [row[0].partition(": ")[2] for row in cells] == tasks
    for _, rate, seconds, early, late in cells:
        assert float(rate) > 0 and float(seconds) >= 0 and 0 < float(early) <= float(late)
    with pytest.raises(RuntimeError, match="three: 2 results instead of 3"):
        captioning.measure("three", iter("ab"), 3)

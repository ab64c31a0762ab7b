"""report.html, parsed; TensorBoard's events, read by TensorBoard; the lines a person sees."""

import base64
import io
import json
import re
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pggan_fast.training import DatasetWriter, RunFolder, TrainConfig, UserError, train
from pggan_fast.training.logging.charts import chart
from pggan_fast.training.logging.loggers import TensorBoard
from pggan_fast.training.logging.report import GRIDS, Report

TINY = {
    "stable_kimg": 0.032,
    "transition_kimg": 0.032,
    "total_kimg": 0.16,
    "batch_size": {4: 16},
    "fmap_base": 32,
    "fmap_max": 8,
    "tick_kimg": 0.016,
    "sample_kimg": 0.032,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run whose name and classes have to be escaped."""
    folder = tmp_path_factory.mktemp("report")
    with DatasetWriter(folder / "<data>", resolution=8, channels=3, classes=["<b>", "&"]) as writer:
        for index in range(20):
            image = np.random.default_rng(index).integers(0, 256, (3, 8, 8), dtype=np.uint8)
            writer.add(image, index % 2, f"{index}.png")
        writer.commit()
    config = TrainConfig(data=folder / "<data>", out=folder / "run <script>", tensorboard=True, **TINY)
    run = RunFolder.create(config)
    assert train(run)
    return run


class Page(HTMLParser):
    """Checks that tags match, and keeps what is asked for below."""

    VOID = {"meta", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text, self.attributes = [], [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {(tag, name) for name, _ in attributes}
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= {(tag, name) for name, _ in attributes}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(run):
    text = (run.path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_report_is_one_file_that_shows_the_run(run):
    text, parsed = page(run)
    assert "script" not in parsed.tags and "b" not in parsed.tags  # the run's own names, escaped
    assert parsed.text.count("run <script>") == 2
    words = "|".join(parsed.text)
    for expected in ("160 of 160 images (100%)", "8 px, stable", "losses", "norm of D's gradient", "images per second"):
        assert expected in words
    for setting, value in [("stable_kimg", "0.032"), ("batch_size", "4: 16"), ("data", "20 images, 3 channels")]:
        assert f"{setting}|{value}" in words
    # Nothing is fetched from anywhere.
    assert parsed.links and all(link.startswith("data:image/jpeg;base64,") for link in parsed.links)
    assert not re.search(r"https?://|url\(|@import", text)
    images = [Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))) for link in parsed.links]
    assert len(images) == len(list(run.samples.iterdir())) == 5
    assert all(max(image.size) <= 768 for image in images)
    assert "http-equiv" not in text  # it is finished: no need to look again


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)' x='",
    "</style></title><iframe src=//x>",
    "]]><!--<b>",
    "\x00&lt;b\u2028\ud800",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_strangers_run_puts_no_element_and_no_attribute_into_the_report(run, tmp_path, text, capsys):
    """Text wherever a run's files may hold some: names and values of statistics, settings, file names, the folder."""
    name = text.replace("/", "\u2215").replace("\0", "").encode("utf-8", "replace").decode()
    folder = shutil.copytree(run.path, tmp_path / f"run {name}")
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {text: 1.5, f"m {text}": 2, "metric": 3}
    foreign = [{**lines[-1], "alpha": text}, {**lines[-1], "resolution": text}, {**lines[-1], "metric": text}, text]
    with open(folder / "stats.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in [*lines, *foreign])
    settings = json.loads((folder / "config.json").read_text())
    settings["settings"] |= {"metrics": text.replace("\0", ""), "init_from": name}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "samples" / f"000000200{name}.png").write_bytes(b"")
    (folder / "samples" / "000000300.png").write_text(f"{text!r}")

    Report(run).write(running=False)
    _, expected = page(run)
    opened = RunFolder.open(folder, {})
    Report(opened).write(running=False)
    _, found = page(opened)
    assert set(found.tags) <= set(expected.tags) and found.attributes <= expected.attributes
    assert found.links and all(link.startswith("data:image/jpeg;base64,") for link in found.links)
    assert any(name in shown for shown in found.text)  # it is there, as text


def test_the_table_of_stages_adds_up(run):
    _, parsed = page(run)
    cells = parsed.text
    start = cells.index("resolution", cells.index("Stages"))
    rows = [cells[i : i + 6] for i in range(start + 6, start + 6 + 3 * 6, 6)]
    assert [row[:3] for row in rows] == [
        ["4 px", "stable", "16"],
        ["8 px", "fading in", "16"],
        ["8 px", "stable", "16"],
    ]
    assert sum(int(row[3]) for row in rows) == 160


def test_charts_show_the_values_of_the_statistics(run):
    text, _ = page(run)
    lines = [json.loads(line) for line in run.stats_file.read_text().splitlines()]
    figures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text)]
    losses = next(figure for figure in figures if figure.get("aria-label") == "losses")
    paths = [path for path in losses.iter("path") if path.get("class").startswith("line")]
    assert len(paths) == 2
    d_path = next(path for path in paths if path.get("class") == "line c0")
    heights = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", d_path.get("d"))]
    values = [line["d_loss"] for line in lines]
    assert len(heights) == len(values)
    # SVG counts downwards; places are rounded to a tenth of a pixel.
    assert np.corrcoef(heights, values)[0, 1] < -0.9999
    marks = [text.text for text in losses.iter("text") if text.text.endswith(" px")]
    assert marks == ["8 px"]


def test_a_run_without_a_line_yet_has_a_report(run, tmp_path):
    config = TrainConfig(data=run.config.data, out=tmp_path / "new", tensorboard=False, **TINY)
    new = RunFolder.create(config)
    Report(new).write()
    text, parsed = page(new)
    assert "0 of 160 images" in parsed.text and 'http-equiv="refresh"' in text


def test_of_many_grids_the_last_and_some_others_are_shown(run, tmp_path):
    new = RunFolder.create(TrainConfig(data=run.config.data, out=tmp_path / "new", tensorboard=False, **TINY))
    new.samples.mkdir()
    for number in range(100):
        Image.new("LA", (2000, 30), (number, 255)).save(new.samples / f"{number * 1000:09d}.png")
    Report(new).write()
    _, parsed = page(new)
    assert len(parsed.links) == GRIDS
    captions = [text for text in parsed.text if text.endswith(" thousand images")]
    assert captions[0] == "99 thousand images" and captions[1] == "0 thousand images"


def test_charts_of_odd_values():
    assert chart("none", {"a": []}) == ""
    assert chart("nan", {"a": [(0, float("nan"))]}) == ""
    for lines in (
        {"a": [(1, 5.0)]},
        {"a": [(0, 0.0), (1, 0.0)]},
        {"a": [(0, 1e-9), (1, 1e9), (2, float("inf"))], "<": [(0, -3)]},
        {"a": [(number, number % 7) for number in range(5000)]},
    ):
        figure = ElementTree.fromstring(chart("<&>", lines, [(0.5, 8)]))
        numbers = re.findall(r"-?[\d.]+", " ".join(path.get("d") for path in figure.iter("path")))
        assert numbers and all(-1 <= float(number) <= 1000 for number in numbers)
        assert figure.get("aria-label") == "<&>"


def events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_tensorboard_reads_the_events(run):
    found = events(run.path / "tensorboard")
    lines = [json.loads(line) for line in run.stats_file.read_text().splitlines()]
    for name in ("d_loss", "g_loss", "alpha", "images_per_second"):
        scalars = found.Scalars(name)
        assert [scalar.step for scalar in scalars] == [line["images"] for line in lines]
        assert np.allclose([scalar.value for scalar in scalars], [line[name] for line in lines], rtol=1e-6)
    grids = found.Images("samples")
    files = sorted(run.samples.glob("*.png"))
    assert [grid.step for grid in grids] == [int(file.stem) for file in files]
    shown = np.asarray(Image.open(io.BytesIO(grids[-1].encoded_image_string)))
    assert np.array_equal(shown, np.asarray(Image.open(files[-1])))


def told_again(folder):
    """Events up to 300 images, then, as after a kill, from the checkpoint at 100 images on."""
    for images, start in ((300, 0), (200, 100)):
        board = TensorBoard(folder, start)
        for seen in range(start + 100, images + 1, 100):
            board.tick({"images": seen, "d_loss": float(start)})
        board.close()
    return [(scalar.step, scalar.value) for scalar in events(folder).Scalars("d_loss")]


def test_resuming_takes_events_back(tmp_path):
    """After a kill, what was told beyond the checkpoint happens again."""
    pytest.importorskip("tensorboard")
    assert told_again(tmp_path) == [(100, 0.0), (200, 100.0)]


def test_resuming_within_the_same_second_takes_events_back(tmp_path, monkeypatch):
    """TensorBoard reads files in the order of their names: second, host, process, and a number of which "10" < "9"."""
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer, "_global_uid", SimpleNamespace(get=iter((9, 10)).__next__))
    time.sleep(1 - time.time() % 1)  # both files at the beginning of a second
    assert told_again(tmp_path) == [(100, 0.0), (200, 100.0)]


def test_tensorboard_that_is_asked_for_and_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"--tensorboard: needs tensorboard .*pip install 'pggan-fast\[tensorboard\]'"):
        TrainConfig(data=tmp_path, out=tmp_path, tensorboard=True)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_tensorboard_takes_any_number_of_channels(tmp_path, channels):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path, 0)
    board.grid(5, np.full((8, 8, channels), 200, np.uint8))
    board.close()
    assert len(events(tmp_path).Images("samples")) == 1

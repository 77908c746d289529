"""The whole page: that it is sound HTML, asks for nothing, and says what is true."""

from __future__ import annotations

import base64
import io
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from chromium import framed, look_at, returned
from PIL import Image
from report_cases import METRICS, Checked, run_folder, table_after
from rich.console import Console

import zoominnet
from zoominnet.data import ImageRecord, ResizeGeometry, SyntheticScenes
from zoominnet.evaluation import Detections, evaluate_coco
from zoominnet.models import ARCHITECTURES
from zoominnet.models.anchors import Anchors
from zoominnet.prediction.comparison import activation_map, masks_of
from zoominnet.reporting.sections import SECTIONS

pytestmark = pytest.mark.slow
QUIET = Console(quiet=True)
SCENES = 8
RUNS = ("demo-teacher", "fa <run>", "demo-snet")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a teacher, a student with curves, and one without, on a few scenes."""
    folder = tmp_path_factory.mktemp("report")
    run = run_folder(folder / "run", "demo-fa", METRICS)
    config = zoominnet.ReportConfig(
        ["demo-teacher", run, "demo-snet"],
        labels=RUNS,
        out=folder / "report.html",
        images=SCENES,
        shown=4,
        device="cpu",
        latency_repeats=1,
    )
    return zoominnet.report(config, console=QUIET).read_text(encoding="utf-8")


def test_it_is_sound_and_asks_for_nothing(page: str) -> None:
    document = Checked(page)
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = set()
    for tag, attributes in document.elements:
        for name in ("href", "src", "xlink:href", "srcset", "action", "poster"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), f"<{tag} {name}={attributes[name][:60]}>"
                if attributes[name].startswith("#"):
                    targets.add(attributes[name][1:])
    targets |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert targets <= set(ids)
    assert set(SECTIONS) <= targets
    assert not re.search(r"url\((?!#)|@import|https?://", page)
    assert len(page) < 2_000_000
    assert not re.findall(r"\bnan\b", " ".join(document.text))


def test_every_section_is_there_and_shows_something(page: str) -> None:
    for name, section in SECTIONS.items():
        inside = page.partition(f'<section id="{name}">')[2].partition("</section>")[0]
        assert f"<h2>{section.title}</h2>" in inside
        assert "Left out" not in inside
        assert "<svg" in inside or "<table" in inside


def looked_at() -> tuple[SyntheticScenes, list[ImageRecord]]:
    """The scenes that the first run was validated on, and those that the page is to have looked at."""
    config = zoominnet.load("demo-teacher").info.config
    scenes = SyntheticScenes(
        config["synthetic_images"][1],
        size=256,
        seed=config["seed"] if config.get("data_seed") is None else config["data_seed"],
        split="val",
        zoom=config["synthetic_zoom"],
        classes=config["synthetic_classes"],
    )
    return scenes, [scenes[i * len(scenes) // SCENES] for i in range(SCENES)]


def test_results_are_those_of_predict(page: str) -> None:
    """Which takes the images one by one, on another way to the model."""
    head, *rows = table_after(page, "<h2>Results</h2>")
    scenes, records = looked_at()
    for row, name in zip(rows, ("demo-teacher", "demo-fa", "demo-snet"), strict=True):
        model = zoominnet.load(name)
        found = [model.predict(scenes.render(record), conf=0.05, max_det=100) for record in records]
        detections = [Detections(x.boxes.double().numpy(), x.scores.double().numpy(), x.labels.numpy()) for x in found]
        score = evaluate_coco(records, detections, scenes.class_names)
        classes = [
            each
            for each in table_after(page, "<h2>AP by class and size</h2>")[1:]
            if unescape(each[2]) == unescape(row[0])
        ]
        assert [float(each[3]) for each in classes] == pytest.approx([each.ap for each in score.classes], abs=0.004)
        shown = dict(zip(head, row, strict=True))
        assert float(shown["AP"]) == pytest.approx(score.ap, abs=0.002)  # boxes are cut off at the image's edges here
        assert float(shown["AP50"]) == pytest.approx(score.ap50, abs=0.002)
        assert shown["input px"] == str(model.image_size)
    assert unescape(rows[1][0]) == RUNS[1]


def test_errors_add_up(page: str) -> None:
    boxes = table_after(page, "<h2>Data</h2>")[-1][1]
    for title in ("Detections with scores over 0.25, each of one kind", "Ground-truth boxes, each of one kind"):
        head, *rows = table_after(page, title)
        assert len(rows) == len(RUNS)
        assert head[-1] == "sum"
        for row in rows:
            assert sum(map(int, row[1:-1])) == int(row[-1])
            if title.startswith("Ground"):
                assert row[-1] == boxes
    for number, kinds in enumerate(table_after(page, "Detections with scores over 0.25, each of one kind")[1:]):
        matrices = page.partition('<section id="confusion">')[2].split("<table")[1:]
        rows = re.findall(r"<tr>.*?</tr>", matrices[number])
        cells = [[int(x) for x in re.findall(r"<td[^>]*>(\d+)</td>", row)] for row in rows[1:]]
        counted = int(kinds[-1]) - int(kinds[-2])  # those in ignored regions are in no matrix
        assert sum(cells[-1][:-2]) == counted
        for row in cells[:-1]:
            assert sum(row[:-1]) == row[-1]


def test_curves_are_those_of_the_file(page: str) -> None:
    section = page.partition('<section id="curves">')[2].partition("</section>")[0]
    charts = {
        unescape(title): [(p[0], p[3], p[4]) for p in json.loads(unescape(points))]
        for title, points in re.findall(r'aria-label="(.*?)" data-points="(.*?)"', section)
    }
    assert charts["loss"] == [(1, "step 10", "2"), (1, "step 20", "1")]
    assert charts["AP on validation images"] == [(1, "step 20", "0.125")]
    assert charts["share of key positions, P2"] == [(1, "step 10", "0.25"), (1, "step 20", "0.5")]
    assert "AP of small objects" not in charts  # no value but null
    assert "gradient norm" not in charts
    assert "Without curves, for it has no metrics.jsonl beside it: demo-teacher, demo-snet." in section


def test_the_area_under_the_curve_of_a_class_is_its_ap50(page: str) -> None:
    section = page.partition('<section id="precision-recall">')[2].partition("</section>")[0]
    rows = table_after(page, "<h2>AP by class and size</h2>")[1:]
    for number, inside in enumerate(section.split("<details>")[1:]):
        points = json.loads(unescape(re.search(r'aria-label="precision, all objects" data-points="(.*?)"', inside)[1]))
        for run in range(len(RUNS)):
            own = [point for point in points if point[0] == run]
            assert len(own) == 101
            assert own[50][3] == "recall 0.5"
            area = sum(float(point[4]) for point in own) / 101
            assert area == pytest.approx(float(rows[len(RUNS) * number + run][-1]), abs=0.001)


def test_the_data_are_those_of_the_images(page: str) -> None:
    _, records = looked_at()
    labels = np.concatenate([record.labels for record in records])
    rows = table_after(page, "<h2>Data</h2>")[1:]
    assert [int(row[1]) for row in rows] == [*np.bincount(labels, minlength=4).tolist(), len(labels)]
    for row in rows:
        assert sum(map(int, row[3:])) == int(row[1])


def pictures_in(page: str, kind: str) -> list[Image.Image]:
    urls = re.findall(rf'href="data:image/{kind};base64,(.*?)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(url))) for url in urls]


def test_masks_and_maps_are_those_of_the_models(page: str) -> None:
    model = zoominnet.load("demo-fa")
    scenes, records = looked_at()
    fullest = max(records, key=lambda record: len(record.boxes))
    section = page.partition('<section id="masks">')[2].partition("</section>")[0]
    geometry = ResizeGeometry.fit(256, 256, 128, "squash")
    expected = masks_of(fullest, Anchors(ARCHITECTURES["fa"])(128, 128), geometry)
    for picture, mask in zip(pictures_in(section, "png")[:5], expected, strict=True):
        assert picture.mode == "LA"
        assert np.array_equal(np.asarray(picture)[..., 1] == 0, mask.numpy())
    section = page.partition('<section id="features">')[2].partition("</section>")[0]
    order = re.findall(r"<figcaption>(.*?)</figcaption>", section)[:4]
    assert [re.sub("<.*?>", "", each).partition(":")[0] for each in order] == [
        "image",
        "demo-teacher",
        *("fa &lt;run&gt;", "demo-snet"),
    ]
    values = activation_map(model, scenes.render(fullest))
    shown = np.asarray(pictures_in(section, "png")[1], dtype=int).sum(axis=-1)
    assert shown.shape == tuple(values.shape)
    assert np.array_equal(shown == shown.max(), values.numpy() == 1)


def test_images_are_there_once_however_many_models_find_in_them(page: str) -> None:
    defined = set(re.findall(r'<image id="(photo-\d+)"', page))
    assert len(defined) == 4
    for name in defined:
        assert page.count(f'<use href="#{name}"') == 1 + len(RUNS)


def test_as_a_file_in_chromium(page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    seen = look_at(file, tmp_path)
    assert "</main>" in seen.dom
    assert (seen.console, seen.requests) == ([], [])


@pytest.mark.parametrize("width", [400, 1400])
def test_in_chromium(page: str, width: int, tmp_path: Path) -> None:
    """No word on the console, no request, nothing beside the page; runs are hidden and values shown."""
    script = """
      const root = document.documentElement;
      const wide = [root.scrollWidth, root.clientWidth];
      const boxes = [...document.querySelectorAll('.runs input')];
      boxes[1].click();
      const hidden = [...document.querySelectorAll('.off')].every((each) => each.classList.contains('run-1'));
      const off = document.querySelectorAll('.off').length;
      boxes[1].click();
      const back = document.querySelectorAll('.off').length;
      const chart = [...document.querySelectorAll('.chart')].find((each) => each.getAttribute('aria-label') == 'loss');
      const [, x, y] = JSON.parse(chart.dataset.points)[1];
      const place = chart.getBoundingClientRect();
      const scale = place.width / chart.viewBox.baseVal.width;
      chart.dispatchEvent(new window.PointerEvent('pointermove', {
        clientX: place.left + x * scale, clientY: place.top + y * scale, bubbles: true,
      }));
      const hint = document.querySelector('.hint');
      const tile = document.querySelector('.tile');
      const small = tile.getBoundingClientRect().width;
      tile.querySelector('svg').dispatchEvent(new window.MouseEvent('click', { bubbles: true }));
      return { wide, off, hidden, back, hint: [...hint.children].map((each) => each.textContent), shown: !hint.hidden,
               tile: [small, tile.getBoundingClientRect().width] };
    """
    file = tmp_path / "framed.html"
    file.write_text(framed(page, width, script), encoding="utf-8")
    seen = look_at(file, tmp_path)
    assert seen.console == []
    assert seen.requests == []
    result = returned(seen)
    assert isinstance(result, dict)
    scrolled, visible = result["wide"]
    assert width - 20 <= visible <= width
    assert scrolled == visible
    assert (result["off"] > 10, result["hidden"], result["back"]) == (True, True, 0)
    assert result["hint"] == ["step 20", "fa <run>: 1"]
    assert result["shown"]
    small, large = result["tile"]
    assert large > 600 > small if width == 1400 else large == small


def test_what_is_wrong_with_a_page_is_seen(tmp_path: Path) -> None:
    """That the test above can fail: a request and an error."""
    file = tmp_path / "bad.html"
    file.write_text('<body><img src="http://127.0.0.1:9/x.png"><script>nothing.here()</script></body>')
    seen = look_at(file, tmp_path)
    assert seen.requests
    assert len(seen.console) == 1

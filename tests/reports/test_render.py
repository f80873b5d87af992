"""Pages and pictures: user text is escaped, nothing is loaded, and heat is where the map has its maximum."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from camworker.frame import Frame
from camworker.reports.cards import BoxRecord, Card, MapsOfClass, Section, make_card, make_known_card
from camworker.reports.contact_sheet import write_contact_sheet
from camworker.reports.heat_map import heat_map

HOSTILE = '<script>alert("x")</script><img src=//x.example/y>'
FACTS = {
    "recipe": "r0123456789ab",
    "images": 2,
    "failed": {"decode_error": 1},
    "truth": True,
    "box_rule": "cam20",
    "refined": None,
}


class Page(HTMLParser):
    """The tags and URLs of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href", "action")]


def a_row(width: int, height: int, name: str = "cat") -> dict:
    box = {"label": 0, "score": 0.5, "xmin": 1.0, "ymin": 2.0, "xmax": 30.0, "ymax": 40.0, "fallback": False}
    return {
        "image_id": HOSTILE,
        "width": width,
        "height": height,
        "labels": [0],
        "names": [name],
        "scores": [0.5],
        "boxes": [{"rank": 1, **box}],
        "targets": [{"label": 1, "score": 0.1, "cam": bytes(8), "refined": None, "boxes": [box]}],
    }


def a_card(name: str = "cat") -> object:
    photo = np.full((80, 60, 3), 128, np.uint8)
    maps = [MapsOfClass(np.ones((2, 2), np.float16), None)]
    frame = Frame(60, 80, 32)
    names = ("cat", HOSTILE)
    return make_card(a_row(60, 80, name), maps, maps, photo, frame, "cam20", [(0, 0, 10, 10)], names)


def test_a_contact_sheet_escapes_names_and_loads_nothing(tmp_path: Path) -> None:
    failures = [{"image_id": HOSTILE, "status": "decode_error", "error": HOSTILE}]
    page = Page(write_contact_sheet(tmp_path, [Section(HOSTILE, [a_card(HOSTILE)])], failures, **FACTS))
    assert "script" not in page.tags
    assert page.tags.count("img") == 3  # photograph, top class, known class
    assert all(url.startswith("data:image/jpeg;base64,") for url in page.urls)
    assert "default-src 'none'" in page.text
    assert page.text.count("&lt;script&gt;") >= 5


def test_boxes_are_drawn_in_pixels_of_the_original(tmp_path: Path) -> None:
    text = write_contact_sheet(tmp_path, [Section("All", [a_card()])], [], **FACTS).read_text()
    assert text.count('viewBox="0 0 60 80"') == 3
    assert text.count('<rect class="predicted" x="1.0" y="2.0" width="29.0" height="38.0"/>') == 3
    assert text.count('<rect class="true" x="0.0" y="0.0" width="10.0" height="10.0"/>') == 3


def test_failures_are_listed_with_their_reasons(tmp_path: Path) -> None:
    failures = [{"image_id": "a.jpg", "status": "decode_error", "error": "cut short"}]
    text = write_contact_sheet(tmp_path, [], failures, **{**FACTS, "failed": {"decode_error": 7}}).read_text()
    assert re.search(r"<td>a\.jpg</td><td>decode_error</td><td>cut short</td>", text)
    assert "the first 1 are listed" in text


@pytest.mark.parametrize(
    ("width", "height", "resize"), [(90, 60, "squash"), (90, 60, "crop"), (60, 90, "crop")]
)
def test_heat_is_where_the_map_has_its_maximum(width: int, height: int, resize: str) -> None:
    frame = Frame(width, height, 32, resize)  # type: ignore[arg-type]
    cam = np.zeros((4, 4), np.float32)
    cam[3, 0] = 2.0  # bottom left of the network's input
    black = np.zeros((height, width, 3), np.uint8)
    heat = heat_map(black, cam, frame).astype(int)
    red, blue = heat[..., 0], heat[..., 2]
    y, x = np.unravel_index((red - blue).argmax(), red.shape)
    xmin, _, _, ymax = frame.to_original(np.array([[0, 0, 32, 32]]))[0]
    assert xmin <= x <= xmin + min(width, height) / 3
    assert ymax - min(width, height) / 3 <= y <= ymax
    assert (red[:, 0] == 0).all() == (xmin > 0)  # the parts that the network does not see are cold


def test_a_map_without_a_positive_value_is_cold_everywhere() -> None:
    heat = heat_map(np.zeros((20, 20, 3), np.uint8), np.full((4, 4), -1.0), Frame(20, 20, 32))
    assert len(np.unique(heat.reshape(-1, 3), axis=0)) == 1


def test_the_card_of_a_known_label_has_its_map_and_its_boxes() -> None:
    photo = np.zeros((640, 960, 3), np.uint8)
    frame = Frame(960, 640, 32)
    maps = MapsOfClass(np.ones((2, 2), np.float16), None)
    box: BoxRecord = {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4, "fallback": False}
    card = make_known_card("a", "cat", maps, photo, frame, "cam20", box, [(5, 6, 7, 8)], "n")
    assert [picture.caption for picture in card.pictures] == ["photograph", "map of cat"]
    assert card.note == "n"
    for picture in card.pictures:
        assert (picture.width, picture.height) == (960, 640)
        drawn = [(box.kind, box.xmin, box.ymin, box.xmax, box.ymax) for box in picture.boxes]
        assert drawn == [("predicted", 1, 2, 3, 4), ("true", 5, 6, 7, 8)]
    sizes = [_decoded(picture.source).shape for picture in card.pictures]
    assert sizes == [(213, 320, 3)] * 2  # scaled down to thumbnails
    plain, heated = (_decoded(picture.source) for picture in card.pictures)
    assert plain.max() < 20
    assert heated[..., 2].mean() > 50  # a constant map is red everywhere (BGR)


def test_a_card_without_pictures_shows_the_error(tmp_path: Path) -> None:
    card = Card("a", (), error=HOSTILE, note="tabby")
    text = write_contact_sheet(tmp_path, [Section("All", [card])], [], **FACTS).read_text()
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert "tabby" in text


def _decoded(source: str) -> np.ndarray:
    data = base64.b64decode(source.partition(",")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

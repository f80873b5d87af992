"""The demo with its photographs, the default network and its pages."""

from pathlib import Path

import pytest

from camworker.dataset import latest
from support.cli_runner import camworker

pytestmark = pytest.mark.ray


def test_the_demo_localizes_summarizes_and_previews(tmp_path: Path) -> None:
    done = camworker("demo", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    home = tmp_path / "camworker-demo"
    rows = {row["image_id"]: row for row in latest(str(home / "predictions"), columns=ROW).to_pylist()}
    assert len(rows) == 9
    assert rows["broken.jpg"]["status"] == "decode_error"
    assert rows["coffee.png"]["names"][0] == "espresso"
    assert rows["camera.png"]["names"][0] == "tripod"
    assert rows["chelsea.png"]["names"][0] == "Egyptian cat"
    for page in done.json["pages"]:
        assert Path(page).stat().st_size > 2000
    assert "Open in a browser" in done.err
    counts = done.json["counts"]
    assert counts["labels"] == 8
    assert counts["boxes_at_0.5"] > counts["raw_boxes_at_0.5"] or (
        counts["boxes_at_0.7"] > counts["raw_boxes_at_0.7"]
    )
    assert f"class reaches IoU 0.5 for {counts['boxes_at_0.5']} and" in done.err

    again = camworker("demo", cwd=tmp_path)
    assert again.code == 0
    assert "0 images localized: 0 ok; 9 were done before" in again.out


ROW = ("image_id", "status", "names")

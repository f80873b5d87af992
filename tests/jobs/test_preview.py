"""The contact sheet and its photographs: which rows are shown, their pixels, and unreadable images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camworker.inference.localizer import Localizer
from camworker.ledger import snapshot as snapshots
from camworker.ledger.ledger import Ledger
from camworker.ledger.snapshot import Snapshot
from camworker.schemas import CamShape, cam_maps
from jobs.cli import main
from jobs.photographs import photographs
from support.factories import photograph
from support.summaries import localized


@pytest.fixture
def output(folder: Path, tmp_path: Path, tiny_localizer: Localizer) -> Ledger:
    """Eleven photographs in three parts; 00.png is 20 pixels wide, 01.png 21, and so on."""
    return localized(tmp_path / "out", folder, tiny_localizer)


def test_photographs_have_their_rows_and_maps(output: Ledger, folder: Path) -> None:
    photos = {p.row["image_id"]: p for p in photographs(Snapshot.load(output), ["07.png", "02.png"])}
    assert sorted(photos) == ["02.png", "07.png"]
    for name, photo in photos.items():
        assert photo.photo_HW3 is not None
        np.testing.assert_array_equal(photo.photo_HW3, np.asarray(Image.open(folder / name).convert("RGB")))
        assert (photo.frame.width, photo.frame.height, photo.frame.input_size) == (20 + int(name[:2]), 40, 32)
        stored = next(
            cam_maps(table["cams"], CamShape(3, 8, 4))[table["image_id"].to_pylist().index(name)]
            for table in Snapshot.load(output).iter_latest()
            if name in table["image_id"].to_pylist()
        )
        np.testing.assert_array_equal([maps.cam_hw for maps in photo.maps], stored)
        assert all(maps.refined_hw is None for maps in (*photo.maps, *photo.targets))
        assert photo.error is None


def test_only_parts_with_one_of_the_images_are_read_completely(
    output: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = snapshots._read, []

    def counting(ledger, key, columns, record=None):  # type: ignore[no-untyped-def]
        if columns is None:
            whole.append(key)
        return read(ledger, key, columns, record)

    monkeypatch.setattr(snapshots, "_read", counting)
    assert len(list(photographs(Snapshot.load(output), ["05.png"]))) == 1
    assert len(whole) == 1
    assert len(output.parts()) == 3


def test_unknown_images_have_no_photographs(output: Ledger) -> None:
    assert list(photographs(Snapshot.load(output), [])) == []
    assert list(photographs(Snapshot.load(output), ["no such.png"])) == []


def test_the_row_of_the_latest_generation_is_shown(
    output: Ledger, folder: Path, tmp_path: Path, tiny_localizer: Localizer
) -> None:
    (folder / "03.png").write_bytes(photograph(99, width=50))
    localized(tmp_path / "out", folder, tiny_localizer, generation=2)
    photos = list(photographs(Snapshot.load(output), ["03.png"]))
    assert [(p.row["generation"], p.frame.width) for p in photos] == [(2, 50)]
    assert photos[0].photo_HW3 is not None


def test_replaced_and_deleted_photographs_are_not_shown(output: Ledger, folder: Path) -> None:
    (folder / "03.png").write_bytes(photograph(99, width=50))
    (folder / "04.png").unlink()
    photos = {p.row["image_id"]: p for p in photographs(Snapshot.load(output), ["03.png", "04.png"])}
    assert photos["03.png"].photo_HW3 is photos["04.png"].photo_HW3 is None
    assert photos["03.png"].error == (
        "the photograph cannot be shown: the file was replaced after it was planned"
    )
    assert (photos["04.png"].error or "").startswith("the photograph cannot be shown: ")


def test_the_sheet_shows_best_worst_and_random_once_each(
    output: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "truth.csv").write_text("image_id,label,xmin,ymin,xmax,ymax\n" + "".join(
        f"{n:02d}.png,cat,1,2,11,22\n" for n in range(11)
    ))  # fmt: skip
    arguments = ["preview", str(tmp_path / "out"), "--to", str(tmp_path / "sheet"), "--count", "3", "--json"]
    assert main([*arguments, "--truth", str(tmp_path / "truth.csv")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["shown"] == 9
    page = Path(result["page"]).read_text()
    shown = [f"{n:02d}.png" for n in range(11) if f"<h3>{n:02d}.png</h3>" in page]
    assert len(shown) == 9
    assert page.count("<h2>") == 3
    # A photograph and three maps each: the network has three classes, and the known class is one of them.
    assert page.count("<img ") == 9 * 4
    assert page.count('<rect class="true" x="1.0" y="2.0" width="10.0" height="20.0"/>') == 9 * 4

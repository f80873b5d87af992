"""The contact sheet and the photographs behind rows: which rows, whose pixels, and what cannot be shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camworker.dataset import iter_latest
from camworker.inference.localizer import Localizer
from camworker.ledger.ledger import Ledger
from jobs.cli import main
from jobs.photographs import photographs
from support.factories import photograph
from support.summaries import localized


@pytest.fixture
def output(folder: Path, tmp_path: Path, tiny_localizer: Localizer) -> Ledger:
    """Eleven photographs in three parts; 00.png is 20 pixels wide, 01.png 21, and so on."""
    return localized(tmp_path / "out", folder, tiny_localizer)


def test_photographs_come_with_their_rows_and_maps(output: Ledger, folder: Path) -> None:
    found = {p.row["image_id"]: p for p in photographs(output, output.read_recipe(), ["07.png", "02.png"])}
    assert sorted(found) == ["02.png", "07.png"]
    for name, photo in found.items():
        assert photo.photo_HW3 is not None
        np.testing.assert_array_equal(photo.photo_HW3, np.asarray(Image.open(folder / name).convert("RGB")))
        assert (photo.frame.width, photo.frame.height, photo.frame.input_size) == (20 + int(name[:2]), 40, 32)
        stored = next(
            table["cams"].combine_chunks().to_numpy_ndarray()[table["image_id"].to_pylist().index(name)]
            for table in iter_latest(output)
            if name in table["image_id"].to_pylist()
        )
        np.testing.assert_array_equal(photo.cams_khw, stored)
        assert photo.error is None


def test_only_parts_that_hold_an_image_are_read_whole(
    output: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import photographs as cards

    read, whole = cards.read_latest, []

    def counting(ledger, key, later, columns=None):  # type: ignore[no-untyped-def]
        if columns is None:
            whole.append(key)
        return read(ledger, key, later, columns)

    monkeypatch.setattr(cards, "read_latest", counting)
    assert len(list(photographs(output, output.read_recipe(), ["05.png"]))) == 1
    assert len(whole) == 1
    assert len(output.parts()) == 3


def test_no_images_and_images_that_are_not_there_give_no_photographs(output: Ledger) -> None:
    assert list(photographs(output, output.read_recipe(), [])) == []
    assert list(photographs(output, output.read_recipe(), ["no such.png"])) == []


def test_of_two_generations_the_later_row_is_shown(
    output: Ledger, folder: Path, tmp_path: Path, tiny_localizer: Localizer
) -> None:
    (folder / "03.png").write_bytes(photograph(99, width=50))
    localized(tmp_path / "out", folder, tiny_localizer, generation=2)
    found = list(photographs(output, output.read_recipe(), ["03.png"]))
    assert [(p.row["generation"], p.frame.width) for p in found] == [(2, 50)]
    assert found[0].photo_HW3 is not None


def test_what_was_replaced_or_removed_is_not_shown(output: Ledger, folder: Path) -> None:
    (folder / "03.png").write_bytes(photograph(99, width=50))
    (folder / "04.png").unlink()
    found = {p.row["image_id"]: p for p in photographs(output, output.read_recipe(), ["03.png", "04.png"])}
    assert found["03.png"].photo_HW3 is found["04.png"].photo_HW3 is None
    assert found["03.png"].error == (
        "the photograph cannot be shown: the file was replaced after it was planned"
    )
    assert (found["04.png"].error or "").startswith("the photograph cannot be shown: ")


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
    # A photograph and three maps each: the network has three classes, so the known one is among them.
    assert page.count("<img ") == 9 * 4
    assert page.count('<rect class="true" x="1.0" y="2.0" width="10.0" height="20.0"/>') == 9 * 4

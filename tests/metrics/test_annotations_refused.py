"""Tests of malformed ground truth: each error names the file, the place and what to change."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from camworker.errors import UsageError
from camworker.metrics.ground_truth.read import read_annotations
from metrics.test_annotations import COCO_FILE, METADATA, voc, write, write_coco


def refused(path: str | Path, message: str, **options: Any) -> str:
    """Check that the path is refused in one line that names it and matches; return the message."""
    with pytest.raises(UsageError, match=message) as caught:
        read_annotations(str(path), **options)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def changed(*steps: object) -> dict[str, Any]:
    """Return COCO_FILE with one value replaced: its keys and indices, then the value."""
    document = copy.deepcopy(COCO_FILE)
    *way, last, value = steps
    inner: Any = document
    for step in way:
        inner = inner[step]
    inner[last] = value
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1}], "results format, which holds predictions"),
        ("text", "no list 'images'"),
        ({"images": [], "annotations": []}, "no list 'categories'"),
        (changed("annotations", {}), "no list 'annotations'"),
        (changed("images", 1, "id", 9), r"images\[0\] and images\[1\] share the id 9"),
        (changed("images", 2, "file_name", "été?.png"), r"images\[1\] and images\[2\] share the file_name"),
        (changed("images", 1, {"id": 5}), r"images\[1\] has no 'file_name'"),
        (changed("images", 1, "file_name", 7), r"images\[1\] has the file_name 7"),
        (changed("images", 1, "file_name", "\ud800.jpg"), "not valid Unicode"),
        (changed("images", 1, "id", [3]), r"images\[1\] has the id \[3\]: ids are integers"),
        (changed("images", 1, None), r"images\[1\] has no 'id'"),
        (changed("categories", 1, "id", 18), r"categories\[0\] and categories\[1\] share the id 18"),
        (changed("categories", 1, "name", "dog"), "share the name 'dog': match categories by index"),
        (
            changed("annotations", 0, "image_id", "3"),
            r"annotations\[0\] has the image_id '3', which no entry of images has",
        ),
        (changed("annotations", 0, "image_id", {}), r"annotations\[0\] has the image_id \{\}"),
        (
            changed("annotations", 2, "category_id", 2),
            r"annotations\[2\] has the category_id 2, which no entry of categ",
        ),
        (changed("annotations", 1, {"image_id": 3, "category_id": 1}), r"annotations\[1\] has no 'bbox'"),
        (changed("annotations", 1, "bbox", [1, 2, 3]), r"annotations\[1\] has the bbox \[1, 2, 3\]"),
        (changed("annotations", 1, "bbox", [1, 2, 3, -4]), r"annotations\[1\] has the bbox"),
        (changed("annotations", 1, "bbox", [1, 2, 3, "4"]), r"annotations\[1\] has the bbox"),
        (changed("annotations", 1, "bbox", [1, 2, 3, None]), r"annotations\[1\] has the bbox"),
        (changed("annotations", 1, "bbox", [1, 2, 3, float("nan")]), r"annotations\[1\] has the bbox"),
        (changed("annotations", 1, "bbox", [1, 2, 3, 1e30]), r"annotations\[1\] has the bbox"),
        (changed("annotations", 1, "bbox", [1, 2, 3, 10**400]), r"annotations\[1\] has the bbox"),
    ],
)
def test_coco(tmp_path: Path, document: object, message: str) -> None:
    refused(write_coco(tmp_path, document), message)


def test_coco_whose_category_ids_are_not_indices(tmp_path: Path) -> None:
    document = changed("categories", 1, "id", "one")
    document["annotations"] = []
    refused(write_coco(tmp_path, document), "match them by name", by="index")


@pytest.mark.parametrize(
    "text",
    [json.dumps(COCO_FILE)[:-9], "", "{'images': []}", "[" * 200_000, '{"images": [\xff', "9" * 5000],
)
def test_invalid_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "truth.json"
    path.write_bytes(text.encode("latin-1"))
    refused(path, "cannot be read as JSON")


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
BOMB = f'<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a0 "ha">{BOMB}]>'
BOX = ("cat", 1, 1, 2, 2, "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "head",
    [
        BOMB,
        '<!DOCTYPE annotation SYSTEM "http://host.invalid/voc.dtd">',
        '<!DOCTYPE annotation [<!ENTITY a9 SYSTEM "SECRET">]>',
    ],
)
def test_xml_with_a_document_type_is_not_parsed(tmp_path: Path, head: str, encoding: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("what nobody should read")
    text = voc("NAME.jpg", BOX, head=head.replace("SECRET", secret.as_uri())).replace("NAME", "&a9;")
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    assert "nobody" not in refused(tmp_path, r"a\.xml declares a document type")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (voc("a.jpg", BOX)[:-5], r"a\.xml cannot be read as XML"),
        ("", r"a\.xml cannot be read as XML"),
        (voc("&nbsp;", BOX).replace("&amp;", "&"), "cannot be read as XML: undefined entity"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "cannot be read as XML"),
        ('<?xml version="1.0" encoding="utf-7"?><annotation/>', "cannot be read as XML"),
        ("<project/>", r"a\.xml is not a Pascal VOC file: it starts with <project>"),
        (voc("a.jpg", BOX, ("  ", *BOX[1:])), r"a\.xml, object 2 has no <name>"),
        (voc("a.jpg", BOX).replace("bndbox", "polygon"), r"a\.xml, object 1 has no <bndbox>"),
        (voc("a.jpg", ("cat", 1, "one", 2, 2, "")), r"a\.xml, object 1, <ymin> is 'one'"),
        (voc("a.jpg", ("cat", 1, 1, "inf", 2, "")), r"<xmax> is 'inf'"),
        (voc("a.jpg", BOX).replace("<xmin>1</xmin>", ""), r"<xmin> is None"),
        (
            voc("a.jpg", BOX, ("cat", 1, 5, 9, 4, "")),
            r"1 boxes have no area, the first in \S+a\.xml, object 2",
        ),
    ],
)
def test_voc(tmp_path: Path, text: str, message: str) -> None:
    refused(write(tmp_path, {"a.xml": text}), message)


def test_voc_of_one_image_twice(tmp_path: Path) -> None:
    path = write(tmp_path, {"a/1.xml": voc("a.jpg", BOX), "b/1.xml": voc("a.jpg", BOX)})
    refused(path, r"a/1\.xml and \S+b/1\.xml are both of the image 'a\.jpg'")


def test_voc_by_index_needs_indices(tmp_path: Path) -> None:
    refused(
        write(tmp_path, {"a.xml": voc("a.jpg", BOX)}), "not class indices, match them by name", by="index"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"image_ids.txt": "a\nb,c\n"}, r"image_ids\.txt, line 2: an image_id cannot contain a comma"),
        ({"image_ids.txt": "a\n\na\n"}, r"image_ids\.txt, line 3: 'a' is already in line 1"),
        (
            {"image_ids.txt": "val/b c.jpg\nval/a#.jpg\n"},
            r"class_labels\.txt, line 1: 'val/é.jpg' is not in image_ids\.txt",
        ),
        (
            {"class_labels.txt": "val/é.jpg,2\n"},
            r"class_labels\.txt: 2 images .* no label, 'val/b c\.jpg' among them",
        ),
        ({"class_labels.txt": "val/é.jpg,2\nval/é.jpg,2\n"}, "line 2: 'val/é.jpg' already has a label"),
        ({"class_labels.txt": "val/é.jpg,two\n"}, "line 1: the label is 'two'"),
        ({"class_labels.txt": "val/é.jpg,-1\n"}, "line 1: the label is '-1'"),
        ({"class_labels.txt": f"val/é.jpg,{'9' * 30}\n"}, "line 1: the label is '99999"),
        ({"class_labels.txt": "val/é.jpg\n"}, "line 1: 1 fields instead of image_id,label"),
        (
            {"localization.txt": "é.jpg,1,2,3,4\n"},
            r"localization\.txt, line 1: 'é\.jpg' is not in image_ids\.txt",
        ),
        (
            {"localization.txt": "val/é.jpg,1,2,3\n"},
            "line 1: 4 fields instead of image_id,x0,y0,x1,y1 or image_id,mask",
        ),
        (
            {"localization.txt": "val/é.jpg,1,2,3,4\nval/é.jpg,m,i\n"},
            "line 2: 3 fields instead of image_id,x0,y0,x1,y1",
        ),
        ({"localization.txt": "val/é.jpg,1,2,3,x\n"}, "line 1: 1,2,3,x is not four numbers"),
        ({"localization.txt": "val/é.jpg,1,2,3,nan\n"}, "line 1: 1,2,3,nan is not four numbers"),
        ({"localization.txt": "\nval/é.jpg,1,2,1,3\n"}, r"1 boxes have no area, the first in line 2"),
        ({"localization.txt": "val/é.jpg,m.png,\n"}, "names mask files: give the folder that they are in"),
    ],
)
def test_metadata_folder(tmp_path: Path, files: dict[str, str], message: str) -> None:
    refused(write(tmp_path, {**METADATA, **files}), message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m/none.png,", r"line 1: the mask \S+/masks/m/none\.png does not exist"),
        ("m/1.png,m/none.png", r"line 1: the mask \S+/masks/m/none\.png does not exist"),
        ("m/../../1.png,", "line 1: 'm/../../1.png' is outside the folder"),
        ("/etc/passwd,", "line 1: '/etc/passwd' is outside the folder"),
        (",m/1.png", "line 1: there is no mask_path"),
    ],
)
def test_mask_paths(tmp_path: Path, line: str, message: str) -> None:
    masks = write(tmp_path / "masks", {"m/1.png": ""})
    (tmp_path / "1.png").touch()
    path = write(tmp_path / "meta", {**METADATA, "localization.txt": f"val/é.jpg,{line}\n"})
    refused(path, message, masks=masks)


def test_a_folder_of_masks_that_is_not_used(tmp_path: Path) -> None:
    path = write(tmp_path, {**METADATA, "localization.txt": "val/é.jpg,1,2,3,4\n"})
    refused(path, "names no mask files: do not give a folder", masks=str(tmp_path))
    refused(write_coco(tmp_path), "names no mask files", masks=str(tmp_path))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, METADATA)
    (tmp_path / "image_ids.txt").write_bytes(b"\xff\xfe.jpg\n")
    refused(path, r"image_ids\.txt cannot be read")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "cat/b.png"], "'a.png' is not in the folder of a class"),
        (["cat/a.ignore.png", "cat/b.png"], r"cat/a\.ignore\.png has no mask: add cat/a\.png"),
        (["notes.md"], "holds no ground truth"),
        ([], "holds no ground truth"),
    ],
)
def test_folders(tmp_path: Path, names: list[str], message: str) -> None:
    write(tmp_path, dict.fromkeys(names, ""))
    refused(tmp_path, message)


def test_a_folder_of_masks_by_index_needs_indices(tmp_path: Path) -> None:
    refused(write(tmp_path, {"cat/a.png": ""}), "not class indices", by="index")


def test_a_mask_whose_name_is_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, {"cat/a.png": "", "cat/\udcff.png": ""})  # surrogates are how Python names such bytes
    refused(tmp_path, "not valid Unicode: rename it")


@pytest.mark.parametrize(
    ("text", "message", "options"),
    [
        ("image,label\na,1\n", "no column 'image_id': it has image, label", {}),
        ("image_id\na\n", "no column 'label'", {}),
        ("image_id,label,xmin\na,1,2\n", "no column 'ymin'", {}),
        ("image_id,label\na,1\n,2\n", "rows without image_id or label", {}),
        ("image_id,label\na,\nb,2\n", "rows without image_id or label", {}),
        ("", "cannot be read as CSV", {}),
        ("image_id,label,xmin,ymin,xmax,ymax\na,1,0,0,wide,1\n", "corners have to be numbers", {}),
        (
            "image_id,label,xmin,ymin,xmax,ymax\na,1,0,0,1,1\nb,1,5,5,5,6\n",
            r"1 boxes .* the first in row 2, b",
            {},
        ),
        ("image_id,label,xmin,ymin,xmax,ymax\na,1,0,0,,1\n", "1 boxes have no area", {}),
        ("image_id,label\na,cat\n", "column 'label': labels are not class indices", {"by": "index"}),
        ("image_id,label\na,1.5\n", "column 'label': labels are not class indices", {"by": "index"}),
    ],
)
def test_long_form(tmp_path: Path, text: str, message: str, options: dict[str, Any]) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(text)
    refused(path, message, **options)


@pytest.mark.parametrize("name", ["a.xml", "a.png", "localization.txt"])
def test_one_file_of_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    refused(tmp_path / name, "name their folder")


@pytest.mark.parametrize("name", ["absent.json", "absent.csv", "absent.parquet", "absent"])
def test_a_missing_path(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name, "cannot be read as .*No such file")

"""Names in exports: any image id gives a safe, distinct file name, and class names survive escaping."""

import re
import xml.etree.ElementTree as ET

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from camworker.classes import Classes
from camworker.exports.file_names import (
    distinct_names,
    image_file_name,
    safe_name,
    xml_attribute,
    xml_text,
)
from camworker.exports.provenance import ExportInfo
from camworker.exports.yolo import _data_yaml
from support.export_rows import IDS

MORE_IDS = ["", ".", "..", "con", "\u0130.jpg", "\u2168", "a" * 5000, "a" * 5001, "\U0001f600.jpg", "x.JPEG"]


def test_file_names_are_safe_and_distinct():
    names = [safe_name(image_id) for image_id in (*IDS, *MORE_IDS)]
    assert all(re.fullmatch("[a-z0-9][a-z0-9_]{19,100}", name) for name in names)
    assert len(set(names)) == len(names)
    assert safe_name("flamingo/IMG 01.jpg").startswith("flamingo_img_01_jpg_")
    assert image_file_name("a/B.JPEG") == f"{safe_name('a/B.JPEG')}.jpeg"
    assert image_file_name("../x.sh") == f"{safe_name('../x.sh')}.jpg"


@settings(max_examples=50)
@given(st.sets(st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(IDS), max_size=10))
def test_file_names_of_any_ids(image_ids):
    names = [safe_name(image_id) for image_id in image_ids]
    assert all(re.fullmatch("[a-z0-9][a-z0-9_]{19,100}", name) for name in names)
    assert len(set(names)) == len(image_ids)


def test_classes_that_share_a_name_get_their_index():
    assert distinct_names(Classes(("a", "b", "c"))) == ("a", "b", "c")
    assert distinct_names(Classes(("a", "b", "a"))) == ("a (0)", "b", "a (2)")
    # A name with an index may be taken as well.
    assert distinct_names(Classes(("a", "a", "a (1)"))) == ("a (0)", "a (1) (1)", "a (1) (2)")


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_any_class_name_in_yaml(names):
    info = ExportInfo("r0123456789ab", "tiny", "cam20", "predicted", 0.0, dict(enumerate(names)))
    assert yaml.safe_load(_data_yaml(info))["names"] == names


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_in_xml(text):
    expected = "".join(
        c if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff") else "\ufffd" for c in text
    )
    assert (ET.fromstring(f"<a>{xml_text(text)}</a>").text or "") == expected
    assert ET.fromstring(f"<a b={xml_attribute(text)}/>").get("b") == expected

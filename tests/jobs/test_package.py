"""The commands package and networks."""

import json

import pytest
import torch
import torchvision

from camworker.inference.localizer import Localizer
from camworker.networks.package import load
from jobs.cli import main
from support.factories import photograph

NAMES = ["cat", "dog", "Jack Russell terrier"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A torchvision network of three classes as a training script saves it, and its class names."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=len(NAMES)).eval()
    torch.save({"model": model.state_dict(), "epoch": 3}, folder / "checkpoint.pth")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    return folder, model


def package(folder, output, *options, names="names.txt"):
    network = ("--network", "torchvision:squeezenet1_1", "--class-names", str(folder / names))
    return main(["package", str(folder / "checkpoint.pth"), *network, "--output", str(output), *options])


def test_a_network_that_was_trained_elsewhere(elsewhere, tmp_path, capsys):
    folder, model = elsewhere
    assert package(folder, tmp_path / "p", "--json") == 0
    out = json.loads(capsys.readouterr().out)
    saved = load(str(tmp_path / "p"))
    assert (out["classes"], out["fingerprint"]) == (3, saved.fingerprint)
    assert saved.classes.names == tuple(NAMES)
    assert (saved.scoring, saved.network.pooling) == ("softmax", "avg")
    assert saved.preprocessing.mean == (0.485, 0.456, 0.406)
    assert saved.provenance == {"command": "package", "weights": "checkpoint.pth"}
    images_BCHW = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(saved.network(images_BCHW)[1], model(images_BCHW))
    row = Localizer(saved, device="cpu", precision="float32").localize([photograph(0, 200, 150)])[0]
    assert set(row.names) == set(NAMES)
    assert row.cams.shape == (3, 13, 13)


def test_options_describe_the_training(elsewhere, tmp_path):
    folder, _ = elsewhere
    options = (
        "--mean",
        "0",
        "0.1",
        "0.2",
        "--std",
        "1",
        "1",
        "1",
        "--input-size",
        "160",
        "--scoring",
        "sigmoid",
    )
    assert package(folder, tmp_path / "p", *options) == 0
    saved = load(str(tmp_path / "p"))
    assert saved.preprocessing.mean == (0, 0.1, 0.2)
    assert (saved.preprocessing.input_size, saved.scoring) == (160, "sigmoid")


@pytest.mark.parametrize(
    ("content", "reason"),
    [("cat\ndog\n", "classifier.1.weight is (3, 512, 1, 1)"), ("", "one class name per line")],
)
def test_class_names_that_do_not_fit(elsewhere, tmp_path, capsys, content, reason):
    folder, _ = elsewhere
    (folder / "others.txt").write_text(content)
    assert package(folder, tmp_path / "p", names="others.txt") == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_a_package_is_not_overwritten(elsewhere, tmp_path, capsys):
    folder, _ = elsewhere
    (tmp_path / "network.json").write_text("{}")
    assert package(folder, tmp_path) == 2
    assert "already" in capsys.readouterr().err


def test_networks_lists_which_networks_can_localize(capsys):
    names = ["nin", "timm:tinynet_e", "torchvision:mobilenet_v3_small", "torchvision:nope"]
    assert main(["networks", *names, "--json"]) == 0
    streams = capsys.readouterr()
    rows = json.loads(streams.out)["networks"]
    assert [row["network"] for row in rows] == names
    assert [row["passes"] for row in rows] == [True, True, False, False]
    assert [row["map"] for row in rows] == [[6, 6], [7, 7], None, None]
    assert rows[0]["parameters"] == 7_595_176  # counted by hand from Lin et al.'s layers, 1000 classes
    assert "576 channels" in rows[2]["reason"]
    assert "no classification network 'nope'" in rows[3]["reason"]
    assert "nin" in streams.err


def test_an_unknown_network_is_refused(capsys):
    assert main(["networks", "resnet50"]) == 2
    assert "unknown network 'resnet50'" in capsys.readouterr().err


def test_a_package_of_another_network_is_refused(elsewhere, tmp_path, capsys):
    folder, _ = elsewhere
    assert package(folder, tmp_path / "p") == 0
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(photograph(0))
    arguments = ["localize", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--network", "nin", "--weights", str(tmp_path / "p")]) == 2
    err = capsys.readouterr().err
    assert "is a package of torchvision:squeezenet1_1, not of nin (--network)" in err
    assert not (tmp_path / "out").exists()

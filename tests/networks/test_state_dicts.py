"""State dicts: files read without running their code, checkpoints, published weights."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import torchvision

from camworker.errors import NetworkError
from camworker.networks.package import build_for_training, load
from camworker.networks.registry import DEFAULT, create_network
from camworker.networks.state_dicts import load_all, load_backbone, published_state, read_state

PLAIN = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([7, 8])}


def refusal(uri) -> str:
    """The message of the NetworkError that loading raises; it has to be one line of plain text."""
    with pytest.raises(NetworkError) as caught:
        read_state(str(uri))
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def same(state, expected=PLAIN) -> bool:
    return list(state) == list(expected) and all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_file_of_tensors(tmp_path, suffix):
    path = tmp_path / f"größe #1{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(PLAIN, path)
    state = read_state(str(path))
    assert {key: tensor.tolist() for key, tensor in state.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "bias": [7, 8],
    }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3},
        lambda state: {"state_dict": state, "args": ["--lr", "0.1"]},
        lambda state: {"state_dict": {"model": state}},
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {"model": {f"module.{key}": tensor for key, tensor in state.items()}},
    ],
    ids=["model", "state_dict", "both", "parallel", "model and parallel"],
)
def test_checkpoints_contain_a_state_dict(tmp_path, wrap):
    torch.save(wrap(PLAIN), tmp_path / "checkpoint.pth")
    assert same(read_state(str(tmp_path / "checkpoint.pth")))


def test_only_a_prefix_of_all_names_is_removed(tmp_path):
    state = {"module.weight": torch.zeros(1), "bias": torch.ones(1)}
    torch.save(state, tmp_path / "w.pt")
    assert same(read_state(str(tmp_path / "w.pt")), state)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_code_in_a_pickle_never_runs(tmp_path, suffix):
    proof = tmp_path / "it ran"
    torch.save({"weight": torch.zeros(1), "attack": Attack(proof)}, tmp_path / f"weights{suffix}")
    with pytest.raises(NetworkError, match="holds no plain weights"):
        read_state(str(tmp_path / f"weights{suffix}"))
    assert not proof.exists()
    # The attack is one: unpickled without care, it does what it says.
    torch.load(tmp_path / f"weights{suffix}", weights_only=False)["attack"].close()
    assert proof.exists()


def test_a_pickle_with_code_is_refused_in_one_line(tmp_path):
    torch.save(Attack(tmp_path / "it ran"), tmp_path / "weights.pt")
    assert "weights.pt" in refusal(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"epoch": 3}, {"state_dict": {}}])
def test_other_content_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    assert "not a state dict" in refusal(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4" + bytes(100)], ids=["empty", "text", "zip"])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["weights.bin", "weights.ckpt", "weights", "missing.pt", "missing.safetensors"]
)
def test_other_files_are_refused(tmp_path, name):
    if not name.startswith("missing"):
        torch.save({}, tmp_path / name)
    assert name in refusal(tmp_path / name)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    torch.save(PLAIN | {"bias": torch.tensor([1, float("nan")])}, tmp_path / "w.pt")
    assert "not finite: bias" in refusal(tmp_path / "w.pt")


def test_auxiliary_heads_are_ignored():
    torch.manual_seed(0)
    trained = torchvision.models.googlenet(num_classes=3, aux_logits=True, init_weights=False)
    state = trained.state_dict()
    assert any(key.startswith("aux2.") for key in state)
    network = create_network("torchvision:googlenet", classes=3)
    load_all(network, state)
    for key, tensor in network.model.state_dict().items():
        assert torch.equal(tensor, state[key])
    state["inception9.weight"] = torch.zeros(2)
    with pytest.raises(
        NetworkError,
        match=r"1 tensors differ, for example inception9\.weight is \(2,\) and has to be nothing",
    ):
        load_all(network, state)


def test_loading_a_backbone_keeps_the_head():
    torch.manual_seed(0)
    network = create_network("torchvision:squeezenet1_1", classes=4)
    state = torchvision.models.squeezenet1_1(num_classes=9).state_dict()
    before = [parameter.clone() for parameter in network.head_parameters()]
    load_backbone(network, state)
    ours = network.model.state_dict()
    assert all(map(torch.equal, network.head_parameters(), before))
    head = set(ours) - set(network.backbone_keys())
    assert head == {"classifier.1.weight", "classifier.1.bias"}  # the convolution that makes the class maps
    assert all(torch.equal(ours[key], state[key]) for key in network.backbone_keys())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch, without internet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def put(cache, name, state):
    """Put a state dict into the cache as the published weights of a network."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    torch.save(state, cache / url.rpartition("/")[2])


def test_published_weights_of_torchvision(cache):
    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1().state_dict()
    put(cache, "squeezenet1_1", state)
    package = load("torchvision:squeezenet1_1", "DEFAULT")
    assert same(package.network.model.state_dict(), state)
    assert len(package.classes) == 1000
    network = build_for_training("torchvision:squeezenet1_1", 3, backbone_weights="DEFAULT")
    ours = network.model.state_dict()
    assert all(torch.equal(ours[key], state[key]) for key in network.backbone_keys())


def test_published_weights_of_a_backbone(cache):
    with torch.device("meta"):
        features = torchvision.models.alexnet().features.state_dict()
    state = {f"features.{key}": torch.rand(tensor.shape) for key, tensor in features.items()}
    put(cache, "alexnet", state | {"classifier.6.bias": torch.zeros(1000)})
    backbone = build_for_training("alexnet-gap", 3, backbone_weights="DEFAULT").model.backbone
    assert same(backbone.state_dict(), state)


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "alexnet-gap"])
def test_published_weights_that_cannot_be_downloaded(cache, name):
    message = f"^the published weights of {name} could not be downloaded: "
    with pytest.raises(NetworkError, match=message) as caught:
        published_state(name)
    assert str(caught.value).isprintable()


def test_published_weights_of_timm_that_cannot_be_downloaded(cache, tmp_path):
    # In a process of its own: the hub's client reads its settings when it is imported.
    code = (
        "from camworker.networks.package import NetworkError, load\ntry: load('timm:resnet10t', 'DEFAULT')\n"
    )
    code += "except NetworkError as error: import json; print(json.dumps(str(error)))"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout)
    assert message.startswith("the published weights of timm:resnet10t could not be downloaded: ")
    assert message.isprintable()


def test_the_default_networks_weights_need_no_download(cache, default_package):
    assert same(published_state(DEFAULT), default_package.network.model.state_dict())
    assert load(DEFAULT, "DEFAULT").fingerprint == default_package.fingerprint


@pytest.mark.parametrize("name", ["nin", "resnet5000"])
def test_networks_without_published_weights(name):
    with pytest.raises(NetworkError, match=f"^{name} has no published weights: a file is needed"):
        published_state(name)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:squeezenet1_1", "alexnet-gap", "nin"])
def test_a_network_without_weights_is_refused_with_advice(name):
    with pytest.raises(NetworkError, match=f"^{name} needs weights: a file, .*DEFAULT"):
        load(name)

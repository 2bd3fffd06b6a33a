import argparse
import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from d2net.errors import OutputError, WeightsError
from d2net.networks import catalogue, weights
from d2net.networks.catalogue import CAFFE, CATALOGUE, TORCH
from d2net.networks.checkpoint import LAYOUTS, SHAPES
from d2net.networks.packing import pack
from d2net.networks.vgg import WHITENING_INPUTS, Whitening
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.networks.weights import (
    describe,
    list_weights,
    load_weights,
    ordinary_file,
    save_weights,
)
from d2net.training.settings import TrainingSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ots():
    return load_weights("ots")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("D2NET_CACHE", str(tmp_path / "cache"))


def in_layout(state, layout, prefix=""):
    return {prefix + LAYOUTS[layout][name]: tensor for name, tensor in state.items()}


def assert_same(loaded, state):
    assert list(loaded.state) == list(state)
    for name, tensor in state.items():
        assert loaded.state[name].dtype == torch.float32
        assert torch.equal(loaded.state[name], tensor), name


def release_checkpoint(state, preprocessing="caffe"):
    """What the release's train.py saves."""
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    parameter.sum().backward()
    optimizer.step()
    return {
        "args": argparse.Namespace(lr=1e-3, preprocessing=preprocessing, plot=False, batch_size=1),
        "epoch_idx": 3,
        "model": in_layout(state, "release"),
        "optimizer": optimizer.state_dict(),
        "train_loss_history": [np.mean([1.0, 2.0]), np.float32(1.25), np.float64(0.5)],
    }


# --- the packaged weights


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the packaged weights need no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


PACKAGED = ("seasons", "ots")


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_fit_the_backbone(no_network, name):
    loaded = load_weights(name)
    assert loaded.name == name
    assert loaded.normalisation == CAFFE
    assert loaded.record is CATALOGUE[name]
    assert loaded.sha256 == CATALOGUE[name].sha256
    VGGBackbone().load_state_dict(loaded.state)  # strict: the names and shapes are the network's


def test_the_default_was_trained_and_ots_was_not(ots):
    default = load_weights()
    assert default.record is CATALOGUE["seasons"]
    first = ots.state["conv1_1.weight"].flatten()[:3]
    published = torch.tensor([0.42947057, 0.373467, -0.06136011])
    torch.testing.assert_close(first, published, atol=4.2e-4, rtol=0)
    for name, array in default.state.items():
        assert torch.equal(array, ots.state[name]) != name.startswith("conv4_"), name


@pytest.mark.parametrize("name", PACKAGED)
def test_describe_tells_what_a_packaged_file_holds(name):
    info = describe(name)
    assert (info.name, info.format, info.layout) == (name, "safetensors", "release")
    assert info.parameters == 7_635_264
    assert info.bytes == CATALOGUE[name].bytes == len(ordinary_file(name))
    assert info.metadata["licence"] == CATALOGUE[name].licence
    assert info.training is None
    last = info.arrays[-2]
    assert last.name == "conv4_3.weight"
    assert last.name_in_file == "dense_feature_extraction.model.21.weight"
    assert (last.shape, last.dtype) == ((512, 512, 3, 3), "float16")


@pytest.mark.parametrize("name", PACKAGED)
def test_the_file_itself_states_the_normalisation_of_its_record(name):
    assert load_weights(CATALOGUE[name].path).normalisation == CATALOGUE[name].normalisation


@pytest.mark.parametrize("name", PACKAGED)
def test_the_model_card_states_checksum_size_and_licence(name):
    card = (CATALOGUE[name].path.parent / "MODEL_CARD.md").read_text()
    assert CATALOGUE[name].sha256 in card
    assert f"{CATALOGUE[name].bytes:,} bytes" in card
    assert CATALOGUE[name].licence.split(" for ")[0] in card


def test_the_model_card_names_every_set_of_photos_that_was_trained_on():
    record = CATALOGUE["seasons"]
    card = (record.path.parent / "MODEL_CARD.md").read_text()
    settings = TrainingSettings.from_dict(json.loads(describe("seasons").metadata["settings"]))
    assert settings.training_sources
    for source in settings.training_sources:
        assert f"| {source.path.partition('/')[0]} |" in card
    recipe = TrainingSettings.from_file(ROOT / "configs" / "default.toml")
    assert settings.updated(name="", licence="") == recipe.updated(name="", licence="")


def test_a_damaged_installation_is_noticed(tmp_path, monkeypatch):
    data = bytearray(CATALOGUE["ots"].path.read_bytes())
    data[-100] ^= 1
    monkeypatch.setattr(catalogue, "_PACKAGED", tmp_path)
    with pytest.raises(WeightsError, match=r"ots\.safetensors is missing.*reinstall"):
        load_weights("ots")
    (tmp_path / "ots.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=r"ots\.safetensors is damaged.*sha256.*reinstall"):
        load_weights("ots")


def test_the_list_holds_what_is_packaged_and_what_can_be_downloaded():
    states = {status.record.name: status for status in list_weights()}
    assert states["seasons"].state == states["ots"].state == "packaged"
    assert states["seasons"].aliases == ("default",)
    for name in ("d2_ots", "d2_tf", "d2_tf_no_phototourism"):
        assert states[name].state == "downloadable"
        assert states[name].record.url == f"https://dusmanu.com/files/d2-net/{name}.pth"


# --- packed weights


@pytest.fixture(scope="module")
def trained(ots, tmp_path_factory):
    """A file as training leaves it, conv4_3 being another than in `ots`."""
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save(path, ots.state | {"conv4_3.weight": 2 * ots.state["conv4_3.weight"]})
    return path


def test_the_packaged_file_is_read_by_any_program_once_it_is_unpacked(ots, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(ordinary_file("ots"))
    stored = safetensors.torch.load_file(path)
    key = "dense_feature_extraction.model.21.weight"
    assert torch.equal(stored[key].float(), ots.state["conv4_3.weight"])
    with pytest.raises(WeightsError, match="no weights called 'd2_tf' are packaged"):
        ordinary_file("d2_tf")


def test_a_packed_file_holds_only_its_own_layers_and_loads_as_the_ordinary_one(trained, tmp_path):
    path = tmp_path / "packed.safetensors"
    path.write_bytes(pack(trained.read_bytes(), ("ots", ordinary_file("ots"))))
    assert path.stat().st_size < 0.35 * trained.stat().st_size
    ordinary, packed = load_weights(trained), load_weights(path)
    assert_same(packed, ordinary.state)
    assert (packed.sha256, packed.normalisation) == (ordinary.sha256, ordinary.normalisation)
    assert describe(path).metadata == describe(trained).metadata


def test_what_is_wrong_with_a_packed_file_is_told(trained, tmp_path):
    path = tmp_path / "packed.safetensors"
    packed = pack(trained.read_bytes(), ("ots", ordinary_file("ots")))
    path.write_bytes(packed[:-1000] + bytes(1000))
    with pytest.raises(WeightsError, match=r"packed\.safetensors is damaged: .*sha256"):
        load_weights(path)
    path.write_bytes(packed[:-1000])
    with pytest.raises(WeightsError, match=r"packed\.safetensors is damaged"):
        load_weights(path)
    path.write_bytes(pack(trained.read_bytes(), ("elsewhere", ordinary_file("ots"))))
    with pytest.raises(WeightsError, match="no weights called 'elsewhere' are packaged"):
        load_weights(path)
    path.write_bytes(packed.replace(b"data_offsets", b"data_offzets"))
    with pytest.raises(WeightsError, match=r"packed\.safetensors"):
        load_weights(path)


def test_the_default_needs_the_weights_it_stands_on(tmp_path, monkeypatch):
    seasons = CATALOGUE["seasons"].path.read_bytes()
    monkeypatch.setattr(catalogue, "_PACKAGED", tmp_path)
    (tmp_path / "seasons.safetensors").write_bytes(seasons)
    with pytest.raises(WeightsError, match=r"ots\.safetensors is missing.*reinstall"):
        load_weights()


# --- normalisation


def test_normalisation_of_one_pixel():
    pixel = torch.tensor([255.0, 128.0, 0.0]).reshape(1, 3, 1, 1)  # red, green, blue
    caffe = CAFFE(pixel).flatten().tolist()
    assert caffe == pytest.approx([0 - 103.939, 128 - 116.779, 255 - 123.68], abs=1e-4)
    imagenet = TORCH(pixel).flatten().tolist()
    green = (128 / 255 - 0.456) / 0.224
    assert imagenet == pytest.approx([(1 - 0.485) / 0.229, green, -0.406 / 0.225], abs=1e-5)


# --- the release's files


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ["published", "bare", "data_parallel", "training"])
def test_the_releases_files_load_by_path(ots, tmp_path, kind, zipped):
    state = in_layout(ots.state, "release")
    contents = {
        "published": {"model": state},
        "bare": state,
        "data_parallel": {"model": in_layout(ots.state, "release", "module.")},
        "training": release_checkpoint(ots.state),
    }[kind]
    path = tmp_path / "d2.03.pth"
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    loaded = load_weights(str(path))
    assert_same(loaded, ots.state)
    assert loaded.normalisation == CAFFE
    assert loaded.name == "d2.03"
    assert loaded.record is None


def test_describe_tells_how_a_checkpoint_was_trained(ots, tmp_path):
    path = tmp_path / "d2.03.pth"
    torch.save(release_checkpoint(ots.state), path)
    info = describe(path)
    assert info.training is not None
    assert info.training.epoch == 3
    assert info.training.losses == (1.5, 1.25, 0.5)
    assert info.training.arguments["lr"] == "0.001"
    assert (info.format, info.layout) == ("torch", "release")


def test_checkpoints_of_older_numpy_load(ots, tmp_path):
    buffer = io.BytesIO()
    contents = release_checkpoint(ots.state)
    torch.save(contents, buffer, _use_new_zipfile_serialization=False)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    data = buffer.getvalue()
    assert (new in data) or (old in data)
    path = tmp_path / "old.pth"
    path.write_bytes(data.replace(new, old))
    assert describe(path).training.losses == (1.5, 1.25, 0.5)
    path.write_bytes(data.replace(new, old).replace(old, new))
    assert describe(path).training.losses == (1.5, 1.25, 0.5)


def test_other_numpy_values_in_a_checkpoint_do_not_matter(ots, tmp_path):
    contents = release_checkpoint(ots.state)
    structured = np.zeros(1, dtype=[("a", "f4"), ("b", "i8")])[0]
    contents["train_loss_history"] += [structured, np.datetime64("2019-05-09"), np.str_("x")]
    path = tmp_path / "odd.pth"
    torch.save(contents, path)
    assert describe(path).training.losses == (1.5, 1.25, 0.5)


def test_the_preprocessing_of_a_training_run_is_its_normalisation(ots, tmp_path):
    path = tmp_path / "torch.pth"
    torch.save(release_checkpoint(ots.state, preprocessing="torch"), path)
    assert load_weights(path).normalisation == TORCH
    torch.save(release_checkpoint(ots.state, preprocessing="mine"), path)
    with pytest.raises(WeightsError, match=r"'mine'.*caffe and torch"):
        load_weights(path)


# --- other files


def test_torchvisions_vgg16_loads_with_its_own_normalisation(ots, tmp_path):
    full = in_layout(ots.state, "torchvision")
    full["features.24.weight"] = torch.zeros(512, 512, 3, 3)
    full["classifier.6.bias"] = torch.zeros(1000)
    path = tmp_path / "vgg16-397923af.pth"
    torch.save(full, path)
    loaded = load_weights(path)
    assert_same(loaded, ots.state)
    assert loaded.normalisation == TORCH
    assert describe(path).unused == 2


def test_our_own_names_load_from_safetensors(ots, tmp_path):
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(ots.state, path)
    loaded = load_weights(path)
    assert_same(loaded, ots.state)
    assert loaded.normalisation == CAFFE


def test_a_state_dict_of_our_model_loads(ots, tmp_path):
    path = tmp_path / "model.pt"
    torch.save({f"backbone.{name}": tensor for name, tensor in ots.state.items()}, path)
    assert_same(load_weights(path), ots.state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_precision_becomes_float32(ots, tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in ots.state.items()}
    path = tmp_path / "w.pth"
    torch.save(state, path)
    assert_same(load_weights(path), {name: tensor.float() for name, tensor in state.items()})
    assert describe(path).arrays[0].dtype == str(dtype).removeprefix("torch.")


def test_parameters_and_views_load_as_plain_tensors(ots, tmp_path):
    state = dict(ots.state)
    state["conv1_1.bias"] = torch.nn.Parameter(state["conv1_1.bias"])
    state["conv1_2.weight"] = state["conv1_2.weight"].to(memory_format=torch.channels_last)
    torch.save(state, tmp_path / "w.pth")
    loaded = load_weights(tmp_path / "w.pth")
    assert_same(loaded, ots.state)
    assert all(t.is_contiguous() and not t.requires_grad for t in loaded.state.values())


# --- files that must be refused


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class EvilEval(Evil):
    def __reduce__(self):
        return eval, (f"__import__('os').system({self.command!r})",)


@pytest.mark.parametrize("evil", [Evil, EvilEval])
@pytest.mark.parametrize("where", ["value", "argument", "history"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_never_run(tmp_path, evil, where, zipped):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    payload = evil(f"touch {marker}")
    contents = release_checkpoint({name: torch.zeros(1) for name in SHAPES})
    if where == "value":
        contents["model"]["x"] = payload
    elif where == "argument":
        contents["args"].lr = payload
    else:
        contents["train_loss_history"].append(payload)
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="to be run when it is loaded"):
        load_weights(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file is as dangerous as this test believes
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_plain_pickle_is_never_run(tmp_path, protocol):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil(f"touch {marker}"), protocol=protocol))
    with pytest.raises(WeightsError, match=str(path)):
        load_weights(path)
    assert not marker.exists()


def test_a_whole_pickled_module_is_refused_with_the_remedy(tmp_path):
    torch.save(torch.nn.Conv2d(3, 64, 3), tmp_path / "module.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn.*Conv2d.*state dict"):
        load_weights(tmp_path / "module.pth")


@pytest.mark.parametrize("record", ["data.pkl", "constants.pkl", "readme.txt"])
def test_zip_files_of_other_kinds_are_refused(tmp_path, record):
    path = tmp_path / "archive.pt"
    with zipfile.ZipFile(path, "w") as archive:  # constants.pkl marks a TorchScript archive
        archive.writestr(f"archive/{record}", b"something else")
        archive.writestr("archive/version", b"3")
    with pytest.raises(WeightsError, match="damaged, truncated or of another kind"):
        load_weights(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv4_3.bias"), "lacks conv4_3.bias"),
        (lambda s: s.update({"conv4_3.bias": torch.zeros(128)}), r"shape \(128,\), not \(512,\)"),
        (lambda s: s["conv2_1.weight"].view(-1)[7:8].fill_(torch.nan), "conv2_1.weight.*NaN"),
        (lambda s: s["conv2_1.bias"].view(-1)[7:8].fill_(torch.inf), "conv2_1.bias.*infinity"),
        (lambda s: s.update({"conv1_1.bias": torch.zeros(64).int()}), "conv1_1.bias.*int32"),
        (lambda s: s.update({"conv1_1.bias": [0.0] * 64}), "a list as conv1_1.bias"),
        (lambda s: s.update({"conv1_1.bias": torch.zeros(64).to_sparse()}), "conv1_1.bias"),
        (lambda s: s.update({"conv1_1.bias": torch.zeros(64, device="meta")}), "on meta"),
    ],
)
def test_wrong_arrays_are_named(ots, tmp_path, change, message):
    state = {name: tensor.clone() for name, tensor in ots.state.items()}
    change(state)
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


def test_another_network_is_refused(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"no known layer of VGG-16.*layer1\.0\.conv1\.weight"):
        load_weights(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(WeightsError, match="a Tensor, not a state dict"):
        load_weights(path)
    torch.save({}, path)
    with pytest.raises(WeightsError, match="nothing"):
        load_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "not a weights file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a weights file"),
        (b"PK\x03\x04" + bytes(100), "damaged, truncated"),
        (struct.pack("<Q", 1 << 60) + b"{}", "damaged, truncated"),
        (struct.pack("<Q", 2) + b"{}", "no known layer of VGG-16"),
    ],
)
def test_what_is_no_weights_file_gets_one_clear_sentence(tmp_path, content, message):
    path = tmp_path / "wrong.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as refused:
        load_weights(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(ots, tmp_path, kind):
    path = tmp_path / "w.pth"
    if kind == "safetensors":
        data = CATALOGUE["ots"].path.read_bytes()
    else:
        torch.save(ots.state, path, _use_new_zipfile_serialization=kind == "zip")
        data = path.read_bytes()
    for length in (1, 9, 30, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match=str(path)):
            load_weights(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_never_cause_anything_but_our_error(tmp_path, kind):
    path = tmp_path / "w.pth"
    if kind == "safetensors":
        safetensors.torch.save_file({"features.0.weight": torch.zeros(4)}, path)
    else:
        contents = release_checkpoint({name: torch.zeros(1) for name in SHAPES})
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "zip")
    original = path.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        data = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        with pytest.raises(WeightsError):
            load_weights(path)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(WeightsError, match="is a directory"):
        load_weights(tmp_path)
    with pytest.raises(WeightsError, match=r"no weights file .*missing\.pth"):
        load_weights(tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights("models/d2_tf.pth")
    with pytest.raises(WeightsError, match=r"cannot be read|no weights file"):
        load_weights("nul\0.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsError, match="not an ordinary file"):
        load_weights(tmp_path / "pipe.pth")


def test_an_unknown_name_gets_the_names_there_are():
    with pytest.raises(WeightsError, match=r"'d2tf'.*d2_tf_no_phototourism.*mean 'd2_tf'"):
        load_weights("d2tf")
    with pytest.raises(WeightsError, match="'zebra', only default, seasons, ots"):
        describe("zebra")


def test_a_name_wins_over_a_file_of_that_name(ots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ots").write_bytes(b"not weights")
    assert load_weights("ots").record is not None
    with pytest.raises(WeightsError, match="not a weights file"):
        load_weights("./ots")
    with pytest.raises(WeightsError, match="not a weights file"):
        load_weights(Path("ots"))


# --- saving


def save(path, state, **changes):
    arguments = {
        "name": "graffiti",
        "normalisation": TORCH,
        "licence": "CC0",
        "training_data": "one wall",
    }
    save_weights(path, state, **(arguments | changes))


def test_saved_weights_come_back_with_their_normalisation(ots, tmp_path):
    path = tmp_path / "new.safetensors"
    save(path, ots.state)
    loaded = load_weights(path)
    assert_same(loaded, ots.state)  # exact: these are half-precision numbers
    assert loaded.normalisation == TORCH
    assert loaded.name == "graffiti"
    info = describe(path)
    assert info.metadata["licence"] == "CC0"
    assert info.metadata["training_data"] == "one wall"
    assert info.arrays[0].dtype == "float16"
    assert path.stat().st_size < 16e6
    assert [file.name for file in tmp_path.iterdir()] == ["new.safetensors"]


def test_a_whitening_is_saved_with_its_weights(ots, tmp_path):
    path = tmp_path / "new.safetensors"
    weight, bias = torch.rand(7, WHITENING_INPUTS).half().float(), torch.rand(7).half().float()
    save(path, ots.state, whitening=Whitening(weight, bias))
    loaded = load_weights(path)
    assert_same(loaded, ots.state)
    assert torch.equal(loaded.whitening.weight, weight)
    assert torch.equal(loaded.whitening.bias, bias)
    assert (describe(path).whitening, describe(path).unused) == (7, 0)
    assert ots.whitening is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"whitening.weight": torch.ones(7, WHITENING_INPUTS)}, "half of a whitening"),
        ({"whitening.bias": torch.ones(7)}, "half of a whitening"),
        (
            {"whitening.weight": torch.ones(7, 9), "whitening.bias": torch.ones(7)},
            "another version",
        ),
        (
            {"whitening.weight": torch.ones(7, WHITENING_INPUTS), "whitening.bias": torch.ones(8)},
            "another",
        ),
        (
            {
                "whitening.weight": torch.ones(7, WHITENING_INPUTS),
                "whitening.bias": torch.full((7,), torch.nan),
            },
            "NaN",
        ),
    ],
)
def test_a_whitening_that_does_not_fit_is_refused(ots, tmp_path, arrays, message):
    path = tmp_path / "bad.safetensors"
    safetensors.torch.save_file({**ots.state, **arrays}, path)
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


def test_a_header_may_begin_like_a_pickle(ots, tmp_path):
    """The first byte of a safetensors file is of its header's length, and can be any."""
    path = tmp_path / "a.safetensors"
    for length in range(300):
        safetensors.torch.save_file(ots.state, path, {"note": "x" * length})
        if path.read_bytes()[:1] == b"\x80":
            break
    else:
        pytest.fail("no such length was tried")
    assert_same(load_weights(path), ots.state)


def test_saving_what_cannot_be_saved_leaves_the_old_file(ots, tmp_path):
    path = tmp_path / "new.safetensors"
    path.write_bytes(b"old")
    too_large = dict(ots.state) | {"conv1_1.bias": torch.full((64,), 1e5)}
    with pytest.raises(WeightsError, match=r"half precision.*infinity"):
        save(path, too_large)
    with pytest.raises(WeightsError, match=r"conv4_3\.bias"):
        save(path, {k: v for k, v in ots.state.items() if k != "conv4_3.bias"})
    with pytest.raises(WeightsError, match="extra"):
        save(path, dict(ots.state) | {"extra": torch.zeros(1)})
    assert path.read_bytes() == b"old"
    with pytest.raises(OutputError):
        save(tmp_path / "missing" / "new.safetensors", ots.state)


def test_weights_of_a_backbone_on_its_way_through_training_can_be_saved(ots, tmp_path):
    backbone = VGGBackbone()
    backbone.load_state_dict(ots.state)
    save(tmp_path / "a.safetensors", dict(backbone.named_parameters()))
    assert_same(load_weights(tmp_path / "a.safetensors"), ots.state)


def test_nothing_heavy_is_imported():
    import subprocess
    import sys

    code = (
        "import sys, d2net.networks.weights; "
        "print([m for m in ('cv2','pycolmap','h5py','faiss','scipy','PIL') if m in sys.modules])"
    )
    source = str(Path(weights.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == "[]"

import argparse
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from d2net import D2Net, match
from d2net.errors import OutputError, WeightsError
from d2net.networks import catalogue, checkpoint
from d2net.networks.catalogue import CAFFE, CATALOGUE, TORCH
from d2net.networks.checkpoint import unpack
from d2net.networks.light import Light
from d2net.networks.matcher import MatcherSettings, MatchingTransformer
from d2net.networks.vgg import VGG, WHITENING_INPUTS, Whitening
from d2net.networks.vgg_backbone import LAYERS, VGGBackbone
from d2net.networks.weights import load_matcher, load_network, load_weights, save_weights
from d2net.training.settings import (
    DistillationSettings,
    MatcherTrainingSettings,
    TrainingSettings,
)

ROOT = Path(__file__).parents[2]


KINDS = ("weight", "bias")
INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)


@pytest.fixture(scope="module")
def ots():
    """The arrays of `ots`: conv1_1.weight, ..."""
    return load_weights("ots").network.backbone.state_dict()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("D2NET_CACHE", str(tmp_path / "cache"))


def in_layout(state, prefix="dense_feature_extraction.model"):
    index = dict(zip(LAYERS, INDICES, strict=True))
    parts = {name: name.split(".") for name in state}
    return {
        f"{prefix}.{index[layer]}.{kind}": state[f"{layer}.{kind}"]
        for layer, kind in parts.values()
    }


def assert_same(loaded, state):
    own = loaded.network.backbone.state_dict()
    assert list(own) == list(state)
    for name, tensor in state.items():
        assert own[name].dtype == torch.float32
        assert torch.equal(own[name], tensor), name


def release_checkpoint(state, preprocessing="caffe"):
    """What the release's train.py saves."""
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.Adam([parameter], lr=1e-3)
    parameter.sum().backward()
    optimizer.step()
    return {
        "args": argparse.Namespace(lr=1e-3, preprocessing=preprocessing, plot=False, batch_size=1),
        "epoch_idx": 3,
        "model": in_layout(state),
        "optimizer": optimizer.state_dict(),
        "train_loss_history": [np.mean([1.0, 2.0]), np.float32(1.25), np.float64(0.5)],
    }


# --- the packaged weights


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the packaged weights need no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


PACKAGED = ("seasons", "light", "learned", "learned_seasons", "ots")


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_are_those_of_the_catalogue(no_network, name):
    loaded = load_weights(name)
    record = CATALOGUE[name]
    assert (loaded.name, loaded.record, loaded.sha256) == (name, record, record.sha256)
    assert loaded.bytes == record.bytes == len(unpack(record.path.read_bytes()))
    assert loaded.metadata["licence"] == record.licence


def test_seasons_was_trained_and_ots_was_not(ots):
    seasons = load_weights("seasons")
    assert seasons.network.normalisation == CAFFE
    first = ots["conv1_1.weight"].flatten()[:3]
    published = torch.tensor([0.42947057, 0.373467, -0.06136011])
    torch.testing.assert_close(first, published, atol=4.2e-4, rtol=0)
    for name, array in seasons.network.backbone.state_dict().items():
        assert torch.equal(array, ots[name]) != name.startswith("conv4_"), name


def test_own_weights_do_not_take_the_name_of_packaged_ones(tmp_path):
    """Their licence and descriptors are others; a run may be called `light`."""
    loaded = load_weights("light")
    copy = shutil.copy(loaded.path, tmp_path / "copy.safetensors")
    assert load_weights(copy).name == "light"
    with torch.no_grad():
        next(loaded.network.parameters()).add_(1)
    save_weights(tmp_path / "own.safetensors", loaded.network, {"name": "light"})
    assert load_weights(tmp_path / "own.safetensors").name == "./light"
    save_weights(tmp_path / "light+seasons.safetensors", loaded.network, {})
    assert load_weights(tmp_path / "light+seasons.safetensors").name == "./light+seasons"


@pytest.mark.parametrize("name", PACKAGED)
def test_the_model_card_states_checksum_size_and_licence(name):
    card = (CATALOGUE[name].path.parent / "MODEL_CARD.md").read_text()
    assert CATALOGUE[name].sha256 in card
    assert f"{CATALOGUE[name].bytes:,} bytes" in card
    assert CATALOGUE[name].licence.split(" for ")[0] in card


def test_the_model_card_names_every_set_of_photos_that_was_trained_on():
    record = CATALOGUE["seasons"]
    card = (record.path.parent / "MODEL_CARD.md").read_text()
    settings = json.loads(load_weights("seasons").metadata["settings"])
    paths = [x["path"] for x in settings["sources"] if x["group"] in settings["groups"]]
    for path in paths:
        assert f"| {path.partition('/')[0]} |" in card
    recipe = TrainingSettings.from_file(ROOT / "configs" / "default.toml")
    assert [source.path for source in recipe.training_sources] == paths


def test_the_card_and_the_recipe_of_light_name_every_set_of_photos_that_was_trained_on():
    record = CATALOGUE["light"]
    card = (record.path.parent / "MODEL_CARD.md").read_text()
    sources = json.loads(load_weights("light").metadata["settings"])["sources"]
    for source in sources:
        assert f"| {source} |" in card
    recipe = DistillationSettings.from_file(ROOT / "configs" / "light.toml")
    assert {source.path.partition("/")[0] for source in recipe.sources} == set(sources)


@pytest.mark.parametrize("name", ["learned", "learned_seasons"])
def test_the_card_and_the_recipe_of_matchers_name_every_set_of_photos_that_was_trained_on(name):
    card = (CATALOGUE[name].path.parent / "MODEL_CARD.md").read_text()
    section = card.partition("`learned`\n")[2].partition("# Model card")[0]
    settings = json.loads(load_weights(name).metadata["settings"])
    recipe = MatcherTrainingSettings.from_file(ROOT / "configs" / "matcher.toml")
    trained = MatcherTrainingSettings.from_dict({**settings, "name": ""})
    assert trained.training_sources == recipe.training_sources
    assert (trained == recipe) == (name == "learned")
    for source in recipe.training_sources:
        assert f"| {source.path} |" in section


def test_light_matches_photos():
    folder = ROOT / "tests" / "data"
    model = D2Net.from_pretrained("light", max_edge=400)
    a, b = (model.extract(folder / name) for name in ("graf1.jpg", "graf3.jpg"))
    assert match(a, b, verify="homography").num_inliers > 100


def test_a_damaged_installation_is_noticed(tmp_path, monkeypatch):
    data = bytearray(CATALOGUE["ots"].path.read_bytes())
    data[-100] ^= 1
    for module in (catalogue, checkpoint):
        monkeypatch.setattr(module, "PACKAGED", tmp_path)
    with pytest.raises(WeightsError, match=r"no weights file .*ots\.safetensors: reinstall"):
        load_weights("ots")
    (tmp_path / "ots.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=r"ots\.safetensors is damaged.*sha256.*reinstall"):
        load_weights("ots")


# --- packed weights


def test_the_packaged_file_is_read_by_any_program_once_it_is_unpacked(ots):
    stored = safetensors.torch.load(unpack(CATALOGUE["ots"].path.read_bytes()))
    key = "dense_feature_extraction.model.21.weight"
    assert torch.equal(stored[key].float(), ots["conv4_3.weight"])


def test_seasons_needs_the_weights_it_stands_on(tmp_path, monkeypatch):
    seasons = CATALOGUE["seasons"].path.read_bytes()
    for module in (catalogue, checkpoint):
        monkeypatch.setattr(module, "PACKAGED", tmp_path)
    (tmp_path / "seasons.safetensors").write_bytes(seasons)
    with pytest.raises(WeightsError, match=r"no weights file .*ots\.safetensors: reinstall"):
        load_weights("seasons")


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
    state = in_layout(ots)
    contents = {
        "published": {"model": state},
        "bare": state,
        "data_parallel": {"model": in_layout(ots, "module.dense_feature_extraction.model")},
        "training": release_checkpoint(ots),
    }[kind]
    path = tmp_path / "d2.03.pth"
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    loaded = load_weights(str(path))
    assert_same(loaded, ots)
    assert loaded.network.normalisation == CAFFE
    assert loaded.name == "d2.03"
    assert loaded.record is None


def test_checkpoints_of_older_numpy_load(ots, tmp_path):
    buffer = io.BytesIO()
    contents = release_checkpoint(ots)
    torch.save(contents, buffer, _use_new_zipfile_serialization=False)
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    data = buffer.getvalue()
    assert (new in data) or (old in data)
    path = tmp_path / "old.pth"
    path.write_bytes(data.replace(new, old))
    assert_same(load_weights(path), ots)
    path.write_bytes(data.replace(new, old).replace(old, new))
    assert_same(load_weights(path), ots)


def test_other_numpy_values_in_a_checkpoint_do_not_matter(ots, tmp_path):
    contents = release_checkpoint(ots)
    structured = np.zeros(1, dtype=[("a", "f4"), ("b", "i8")])[0]
    contents["train_loss_history"] += [structured, np.datetime64("2019-05-09"), np.str_("x")]
    path = tmp_path / "odd.pth"
    torch.save(contents, path)
    assert_same(load_weights(path), ots)


def test_the_preprocessing_of_a_training_run_is_its_normalisation(ots, tmp_path):
    path = tmp_path / "torch.pth"
    torch.save(release_checkpoint(ots, preprocessing="torch"), path)
    assert load_weights(path).network.normalisation == TORCH
    torch.save(release_checkpoint(ots, preprocessing="mine"), path)
    with pytest.raises(WeightsError, match=r"'mine'.*caffe and torch"):
        load_weights(path)


# --- other files


def test_torchvisions_vgg16_loads_with_its_own_normalisation(ots, tmp_path):
    full = in_layout(ots, "features")
    full["features.24.weight"] = torch.zeros(512, 512, 3, 3)
    full["classifier.6.bias"] = torch.zeros(1000)
    path = tmp_path / "vgg16-397923af.pth"
    torch.save(full, path)
    loaded = load_weights(path)
    assert_same(loaded, ots)
    assert loaded.network.normalisation == TORCH


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_precision_becomes_float32(ots, tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in ots.items()}
    path = tmp_path / "w.pth"
    torch.save(in_layout(state), path)
    assert_same(load_weights(path), {name: tensor.float() for name, tensor in state.items()})


def test_parameters_and_views_load_as_plain_tensors(ots, tmp_path):
    state = dict(ots)
    state["conv1_1.bias"] = torch.nn.Parameter(state["conv1_1.bias"])
    state["conv1_2.weight"] = state["conv1_2.weight"].to(memory_format=torch.channels_last)
    torch.save(in_layout(state), tmp_path / "w.pth")
    assert_same(load_weights(tmp_path / "w.pth"), ots)


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
    contents = release_checkpoint({f"{name}.{k}": torch.zeros(1) for name in LAYERS for k in KINDS})
    if where == "value":
        contents["model"]["x"] = payload
    elif where == "argument":
        contents["args"].lr = payload
    else:
        contents["train_loss_history"].append(payload)
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="when loaded, which d2net never does"):
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
        (lambda s: s.pop("conv4_3.bias"), r"conv4_3.bias should have shape \(512,\)"),
        (
            lambda s: s.update({"conv4_3.bias": torch.zeros(128)}),
            r"shape \(512,\), but .* has \(128,\)",
        ),
        (lambda s: s["conv2_1.weight"].view(-1)[7:8].fill_(torch.nan), "conv2_1.weight.*NaN"),
        (lambda s: s["conv2_1.bias"].view(-1)[7:8].fill_(torch.inf), "conv2_1.bias.*infinity"),
        (lambda s: s.update({"conv1_1.bias": torch.zeros(64).int()}), "conv1_1.bias.*int32"),
        (lambda s: s.update({"conv1_1.bias": [0.0] * 64}), "conv1_1.bias should .* list"),
        (lambda s: s.update({"conv1_1.bias": torch.zeros(64).to_sparse()}), "conv1_1.bias"),
        (lambda s: s.update({"conv1_1.bias": torch.zeros(64, device="meta")}), "on meta"),
    ],
)
def test_wrong_arrays_are_named(ots, tmp_path, change, message):
    state = {name: tensor.clone() for name, tensor in ots.items()}
    change(state)
    path = tmp_path / "w.pth"
    torch.save(in_layout(state), path)
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
        (b"", "not a weights file"),
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
        torch.save(ots, path, _use_new_zipfile_serialization=kind == "zip")
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
        contents = release_checkpoint(
            {f"{name}.{k}": torch.zeros(1) for name in LAYERS for k in KINDS}
        )
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "zip")
    original = path.read_bytes()
    generator = random.Random(0)
    for _ in range(40):
        data = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        with pytest.raises(WeightsError):
            load_weights(path)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights(tmp_path)
    with pytest.raises(WeightsError, match=r"no weights file .*missing\.pth"):
        load_weights(tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights("models/d2_tf.pth")
    with pytest.raises(WeightsError, match="no weights file ~nobody-has-this-name/w"):
        load_weights("~nobody-has-this-name/w.safetensors")
    with pytest.raises(WeightsError, match=r"cannot be read|no weights file"):
        load_weights("nul\0.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights(tmp_path / "pipe.pth")


def test_an_unknown_name_gets_the_names_there_are():
    with pytest.raises(WeightsError, match=r"'d2tf'.*d2_tf_no_phototourism.*mean 'd2_tf'"):
        load_weights("d2tf")
    with pytest.raises(
        WeightsError, match="'zebra', only default, seasons, light, learned, learned_seasons, ots"
    ):
        load_weights("zebra")


def test_a_name_wins_over_a_file_of_that_name(ots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ots").write_bytes(b"not weights")
    assert load_weights("ots").record is not None
    with pytest.raises(WeightsError, match="not a weights file"):
        load_weights("./ots")
    with pytest.raises(WeightsError, match="not a weights file"):
        load_weights(Path("ots"))


# --- saving

ABOUT = {"name": "graffiti", "licence": "CC0", "training_data": "one wall"}


def vgg(state, normalisation=TORCH, whitening=None):
    network = VGG(VGGBackbone(), normalisation, whitening)
    network.backbone.load_state_dict(state)
    return network


def test_saved_weights_come_back_with_their_normalisation_and_whitening(ots, tmp_path):
    path = tmp_path / "new.safetensors"
    weight, bias = torch.rand(7, WHITENING_INPUTS).half().float(), torch.rand(7).half().float()
    save_weights(path, vgg(ots, whitening=Whitening(weight, bias)), ABOUT)
    loaded = load_weights(path)
    assert_same(loaded, ots)  # exact: these are half-precision numbers
    assert loaded.network.normalisation == TORCH
    assert torch.equal(loaded.network.whitening.weight, weight)
    assert torch.equal(loaded.network.whitening.bias, bias)
    assert loaded.name == "graffiti"
    assert ABOUT.items() <= loaded.metadata.items()
    assert path.stat().st_size < 16e6
    assert [file.name for file in tmp_path.iterdir()] == ["new.safetensors"]


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.ones(7, 9), torch.ones(7)),
        (torch.ones(7, WHITENING_INPUTS), torch.ones(8)),
        (torch.ones(7, WHITENING_INPUTS), torch.full((7,), torch.nan)),
    ],
)
def test_a_whitening_that_does_not_fit_is_refused(ots, tmp_path, weight, bias):
    path = tmp_path / "bad.safetensors"
    whitening = {"whitening.weight": weight, "whitening.bias": bias}
    safetensors.torch.save_file({**in_layout(ots), **whitening}, path)
    with pytest.raises(WeightsError, match="whitening"):
        load_weights(path)


def test_a_header_may_begin_like_a_pickle(ots, tmp_path):
    """The first byte of a safetensors file is of its header's length, and can be any."""
    path = tmp_path / "a.safetensors"
    for length in range(300):
        data = safetensors.torch.save({"conv1_1.bias": ots["conv1_1.bias"]}, {"note": "x" * length})
        if data[:1] == b"\x80":
            break
    else:
        pytest.fail("no such length was tried")
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="no known layer"):  # it was read as safetensors
        load_weights(path)


def test_saving_what_cannot_be_saved_leaves_the_old_file(ots, tmp_path):
    path = tmp_path / "new.safetensors"
    path.write_bytes(b"old")
    too_large = dict(ots) | {"conv1_1.bias": torch.full((64,), 1e5)}
    with pytest.raises(WeightsError, match=r"half precision.*infinity"):
        save_weights(path, vgg(too_large), ABOUT)
    assert path.read_bytes() == b"old"
    with pytest.raises(OutputError):
        save_weights(tmp_path / "missing" / "new.safetensors", vgg(ots), ABOUT)


def test_each_kind_of_network_is_loaded_for_its_purpose_only(tmp_path):
    path = tmp_path / "m.safetensors"
    small = MatchingTransformer(MatcherSettings(8, 16, 2, 1))
    save_weights(path, small, {**ABOUT, "descriptor_id": "light 1234 light"})
    network, loaded = load_matcher(path)
    assert network.settings == small.settings
    assert loaded.metadata["descriptor_id"] == "light 1234 light"
    with pytest.raises(WeightsError, match="--matcher"):
        load_network(path)
    save_weights(path, Light(), ABOUT)
    assert isinstance(load_network(path)[0], Light)
    with pytest.raises(WeightsError, match="no matcher"):
        load_matcher(path)


def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(WeightsError, match="no weights file None"):
        D2Net.from_pretrained(None)  # type: ignore[arg-type]

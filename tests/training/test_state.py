"""Files that appear whole or not at all, errors that say what is wrong, and bits that come back as they went."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from ldm_mini import files as files_
from ldm_mini.files import SUMS, FileError, load_safetensors, read_json, save_safetensors, write_file, write_json
from ldm_mini.hub import load, save
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.training.state import latest, load_training_state, save_training_state
from ldm_mini.weights import INDEX, WEIGHTS, load_weights, save_weights


def same_bits(a, b) -> bool:
    """Equal in dtype, shape and every bit, NaNs and signed zeros included; through any nesting."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
            *(v.contiguous().flatten().view(torch.uint8) for v in (a, b)))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return repr(a) == repr(b)


def test_tensors_come_back_bit_by_bit(tmp_path):
    base = torch.randn(6, 4)
    tensors = {"odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]), "scalar": torch.tensor(3.5),
               "half": torch.randn(3).half(), "bf16": torch.randn(3).bfloat16(), "double": torch.randn(2).double(),
               "int": torch.tensor([-(2**62)]), "bytes": torch.arange(256, dtype=torch.uint8),
               "bool": torch.tensor([True, False]), "empty": torch.zeros(0, 3), "transposed": base.T, "shared": base,
               "row": base[1], "wide": torch.ones(1).expand(5), "weight": nn.Parameter(base),
               "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    save_safetensors(tmp_path / "a.safetensors", tensors, {"note": "kept"})
    back = load_safetensors(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert same_bits(value.detach(), back[name]), name
    with safe_open(tmp_path / "a.safetensors", "pt") as file:  # as any other library reads it
        assert file.metadata() == {"format": "pt", "note": "kept"} and same_bits(base, file.get_tensor("shared"))


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"a": torch.zeros(4)})
    first = load_safetensors(path)["a"]
    save_safetensors(path, {"a": torch.ones(4)})
    assert not first.any() and load_safetensors(path)["a"].all()
    first += 1  # and is ours to write to


@pytest.mark.parametrize("cut", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"a": torch.zeros(40)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileError, match="a.safetensors is truncated or damaged"):
        load_safetensors(path)


def test_a_missing_file_and_bad_json_are_errors_that_name_them(tmp_path):
    with pytest.raises(FileError, match="b.safetensors does not exist"):
        load_safetensors(tmp_path / "b.safetensors")
    with pytest.raises(FileError, match="config.json does not exist"):
        read_json(tmp_path / "config.json")
    for content in (b'{"a": ', b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(FileError, match="config.json is damaged"):
            read_json(tmp_path / "config.json")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})

    def full(*_):
        raise OSError("no space left on device")

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files_.os, broken, full)
            with pytest.raises(OSError, match="no space"):
                write_json(path, {"a": 2})
        assert read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["config.json"]


def dies_at(moment: int, action) -> bool:
    """Run `action` in a child that is killed (SIGKILL) at its `moment`-th call to the file system; was it killed?"""
    child = os.fork()
    if child == 0:
        left = [moment]

        def deadly(function):
            def call(*args, **kwargs):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return call

        for owner, names in ((os, ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir")),
                             (Path, ("rename", "mkdir")), (shutil, ("rmtree", "copyfile"))):
            for name in names:
                setattr(owner, name, deadly(getattr(owner, name)))
        try:
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def forks(test):
    """A test that needs os.fork, which warns that there are threads."""
    quiet = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    return quiet(pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")(test))


@forks
def test_kill_9_during_a_write_leaves_the_old_or_the_new_file(tmp_path):
    path, seen = tmp_path / "f", set()
    write_file(path, b"old" * 1000)
    for moment in range(1, 50):
        killed = dies_at(moment, lambda: write_file(path, b"new" * 2000))
        content = path.read_bytes()
        assert content in (b"old" * 1000, b"new" * 2000), moment
        seen.add((killed, content[:3]))
        if not killed:
            break
        write_file(path, b"old" * 1000)
    assert {(True, b"old"), (False, b"new")} <= seen


@forks
def test_kill_9_during_a_checkpoint_leaves_a_complete_one(tmp_path):
    """Steps 1 and 2 are on disk; 3 is being written, with keep=2. Whenever it dies, the newest is 2 or 3, and whole."""
    def state(step):
        return {"model": {"w": torch.full((50,), float(step))}, "optimizer": {"lr": 0.1 * step}}

    outcomes = []
    for moment in range(1, 80):
        run = tmp_path / str(moment)
        for step in (1, 2):
            save_training_state(run, step, state(step))
        killed = dies_at(moment, lambda run=run: save_training_state(run, 3, state(3)))
        step, found = load_training_state(latest(run))
        assert step in (2, 3) and same_bits(found, state(step)), moment
        for file in run.glob("step-*"):  # what can be seen is whole
            assert load_training_state(file)[0] == int(file.stem[5:]), moment
        outcomes.append((killed, step))
        save_training_state(run, 4, state(4))  # the next run is not disturbed by what the dead one left
        assert sorted(os.listdir(run))[-1] == "step-00000004.safetensors" and not list(run.glob(".*")), os.listdir(run)
        if not killed:
            break
    assert (True, 2) in outcomes and (True, 3) in outcomes and outcomes[-1] == (False, 3) and len(outcomes) >= 8


def test_large_weights_are_shards_with_an_index(tmp_path):
    tensors = {"huge": torch.randn(6000)} | {f"layer.{i}.weight": torch.randn(40 + i, 25) for i in range(20)}
    tensors |= {f"many.small.{i}.bias": torch.randn(2) for i in range(500)}  # here the header is most of the file
    files = save_weights(tmp_path, tensors, shard_bytes=16_000)
    assert sorted(files) == sorted(os.listdir(tmp_path)) and INDEX in files and len(files) > 5
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(4 * v.numel() for v in tensors.values())
    assert set(index["weight_map"]) == set(tensors) and set(index["weight_map"].values()) == set(files) - {INDEX}
    for i, file in enumerate(sorted(set(files) - {INDEX}), start=1):
        assert file == f"model-{i:05}-of-{len(files) - 1:05}.safetensors"
        alone = index["weight_map"]["huge"] == file
        assert alone or (tmp_path / file).stat().st_size <= 16_000, "a shard is larger than asked for"
    assert same_bits(dict(sorted(load_weights(tmp_path).items())), dict(sorted(tensors.items())))


def test_hugging_face_reads_the_shards(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    if not hasattr(hub, "load_torch_model"):
        pytest.skip("this huggingface_hub is too old")
    model, other = (nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30)) for _ in range(2))
    save_weights(tmp_path, model.state_dict(), shard_bytes=5000)
    hub.load_torch_model(other, tmp_path, safe=True)
    assert same_bits(dict(model.state_dict()), dict(other.state_dict()))


def test_saving_again_leaves_no_file_of_the_last_time(tmp_path):
    (tmp_path / "README.md").write_text("stays")
    tensors = {f"{i}": torch.randn(1000) for i in range(4)}
    for limit, number in ((5000, 4), (10**6, 1), (9000, 2)):
        files = save_weights(tmp_path, tensors, shard_bytes=limit)
        assert (files == [WEIGHTS]) if number == 1 else len(files) == number + 1        # and the index
        assert sorted(os.listdir(tmp_path)) == sorted([*files, "README.md"])
        assert same_bits(dict(sorted(load_weights(tmp_path).items())), tensors)


def test_half_precision_only_where_asked(tmp_path):
    tensors = {"w": torch.randn(100), "buffer": torch.randn(100), "count": torch.tensor([2**40])}
    save_weights(tmp_path, tensors, half=("w", "count"))
    back = load_weights(tmp_path)
    assert same_bits(back["w"], tensors["w"].half()) and same_bits(back["buffer"], tensors["buffer"])
    assert same_bits(back["count"], tensors["count"])
    with pytest.raises(ValueError, match="w has values beyond float16"):
        save_weights(tmp_path, {"w": torch.tensor([1e5])}, half=("w",))


def test_weights_of_another_model_are_refused(tmp_path):
    bottleneck = VQBottleneck(VectorQuantizer(4, 3))
    save(tmp_path, bottleneck)
    assert same_bits(load(tmp_path, "VQBottleneck").state_dict(), bottleneck.state_dict())
    weights = load_weights(tmp_path)
    fewer = {name: v for name, v in weights.items() if name != "quantizer.usage"}
    for changed, words in ((weights | {"old": torch.zeros(1)}, 'Unexpected.*"old"'),
                           (weights | {"quantizer.idle": torch.zeros(5)}, "size mismatch for quantizer.idle"),
                           (fewer, 'Missing.*"quantizer.usage"')):
        save_weights(tmp_path, changed)
        with pytest.raises(FileError, match=f"(?s)another model.*{words}"):
            load(tmp_path, "VQBottleneck")


def test_a_missing_shard_is_named(tmp_path):
    files = save_weights(tmp_path, {f"{i}": torch.randn(1000) for i in range(3)}, shard_bytes=5000)
    (tmp_path / files[1]).unlink()
    with pytest.raises(FileError, match=f"{files[1]} does not exist"):
        load_weights(tmp_path)


OPTIMIZERS = {"adamw": lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.5, 0.9), amsgrad=True),
              "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True)}


def train(model, optimizer, steps):
    for _ in range(steps):
        loss = model(torch.randn(8, 3) + random.random() + np.random.rand()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_bit_by_bit(tmp_path, make):
    def fresh(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.BatchNorm1d(4), nn.Linear(4, 2))
        return model, make([{"params": model[0].parameters(), "weight_decay": 0.1},
                            {"params": model[2:].parameters(), "lr": 0.003}])

    model, optimizer = fresh(0)
    train(model, optimizer, 5)
    save_training_state(tmp_path, 5, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    saved, groups = {k: v.clone() for k, v in model.state_dict().items()}, str(optimizer.state_dict()["param_groups"])
    train(model, optimizer, 5)

    again, its = fresh(1)
    train(again, its, 2)
    step, state = load_training_state(latest(tmp_path))
    again.load_state_dict(state["model"])
    its.load_state_dict(state["optimizer"])
    # plain tensors under their names, nothing pickled
    assert {"model.0.weight", "rng.torch"} <= load_safetensors(latest(tmp_path)).keys()
    assert step == 5 and same_bits(saved, state["model"]) and str(state["optimizer"]["param_groups"]) == groups
    train(again, its, 5)
    assert same_bits(dict(model.state_dict()), dict(again.state_dict()))
    assert same_bits(optimizer.state_dict(), its.state_dict())


def test_any_nesting_survives(tmp_path):
    state = {"a": {1: [torch.ones(2), (0.1, 1e-300, None)], "1": {"x": True, 2.5: "y"}, None: ()},
             "b": [float("inf"), {}, [], torch.zeros(0), {"tensor": torch.tensor(1)}, {"dict": 3}, -0.0, 2**70, "é"]}
    save_training_state(tmp_path, 0, state)
    assert same_bits(load_training_state(latest(tmp_path))[1], state)


def test_what_json_cannot_hold_is_refused(tmp_path):
    for value in (lambda: 0, np.zeros(2)):
        with pytest.raises(TypeError, match="JSON"):
            save_training_state(tmp_path, 0, {"a": {"x": [1, value]}})
    assert latest(tmp_path) is None


def draws():
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item(),
            torch.randn(1).item()]


def test_random_numbers_go_on(tmp_path):
    draws()  # leaves half a pair of Gaussians in Python's and NumPy's stores
    save_training_state(tmp_path, 1, {})
    expected = [draws() for _ in range(3)]
    load_training_state(latest(tmp_path))
    assert [draws() for _ in range(3)] == expected


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 5, 20, 100):
        assert save_training_state(tmp_path, step, {"a": step}).name == f"step-{step:08}.safetensors"
    assert sorted(os.listdir(tmp_path)) == [SUMS, *(f"step-{step:08}.safetensors" for step in (20, 100))]
    save_training_state(tmp_path, 100, {"a": "again"})
    assert load_training_state(latest(tmp_path))[1] == {"a": "again"} and len(os.listdir(tmp_path)) == 3


@pytest.mark.parametrize("damage", [
    lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(p.read_bytes()[:50]),
    lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: p.write_text("[]"),
    lambda p: p.rename(p.with_name(f".{p.name}.tmp"))])
def test_latest_passes_over_what_is_incomplete(tmp_path, damage):
    for step in (1, 2):
        save_training_state(tmp_path, step, {"model": {"w": torch.full((3,), float(step))}})
    damage(tmp_path / "step-00000002.safetensors")
    assert load_training_state(latest(tmp_path))[1]["model"]["w"].tolist() == [1, 1, 1]
    save_training_state(tmp_path, 3, {"model": {"w": torch.zeros(3)}})
    assert load_training_state(latest(tmp_path))[0] == 3


def test_nothing_to_find(tmp_path):
    assert latest(tmp_path) is None and latest(tmp_path / "never") is None
    with pytest.raises(FileError, match="does not exist"):
        load_training_state(tmp_path / "step-00000001.safetensors")

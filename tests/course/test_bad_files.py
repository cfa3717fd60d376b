"""Files and folders that are damaged, foreign or of another kind: one line that names them, and nothing is lost."""

import json
import re
import shlex
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_mini import hub
from ldm_mini.__main__ import main
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.concat_conditioners import InpaintConditioner, SemanticConditioner
from ldm_mini.conditioners import ClassConditioner, CombinedConditioner, LayoutConditioner, TextConditioner
from ldm_mini.files import FileError, read_json, read_sums, save_safetensors
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.released.reading import fit, on_meta, read_weights
from ldm_mini.scenes import ImageFolderDataset
from ldm_mini.schedule import NoiseSchedule, linear_betas
from ldm_mini.show.inputs import batch_from_files, contradictions
from ldm_mini.text import TextTransformer
from ldm_mini.training import runs
from ldm_mini.training.latents import LatentCache
from ldm_mini.training.state import load_training_state, save_training_state
from ldm_mini.unet import UNet, UNetConfig

SMALL = dict(channels=8, channel_mults=(1, 2), attn_levels=(1,), num_res_blocks=1, groups=4, head_dim=8)
PNG = "photo.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of small models: of all conditions, of classes, of none, a first stage; and some files."""
    torch.manual_seed(0)
    place, schedule = tmp_path_factory.mktemp("files"), NoiseSchedule(linear_betas(50))
    stage = Autoencoder(AutoencoderConfig(channels=8, groups=4, num_res_blocks=1), VQBottleneck(VectorQuantizer(16, 3)))
    parts = [ClassConditioner(64, 12, 12), LayoutConditioner(64, 12), InpaintConditioner(3, 4, presence=True),
             TextConditioner(TextTransformer(width=12, layers=1, heads=2)),
             SemanticConditioner(72, 4, presence=True, channels=2, width=4)]
    net = UNet(UNetConfig(3, concat_channels=8, context_dim=12, vector_dim=12, **SMALL))
    LatentDiffusion(stage, net, schedule, CombinedConditioner(parts), image_size=32).save_pretrained(place / "model")
    LatentDiffusion(None, UNet(UNetConfig(3, **SMALL)), schedule, image_size=32).save_pretrained(place / "pixels")
    LatentDiffusion(None, UNet(UNetConfig(3, context_dim=12, **SMALL)), schedule, ClassConditioner(64, 12),
                    image_size=32).save_pretrained(place / "classes")
    LatentDiffusion(None, UNet(UNetConfig(3, context_dim=12, vector_dim=12, **SMALL)), schedule,
                    TextConditioner(TextTransformer(width=12, layers=1, heads=2)), p_uncond=0.0,
                    image_size=32).save_pretrained(place / "unguided")
    hub.save(place / "stage", stage)
    shutil.copytree(place / "model", place / "run" / "model")
    Image.new("RGB", (32, 32), (9, 9, 9)).save(place / PNG)
    Image.new("L", (32, 32), 3).save(place / "map.png")
    Image.new("1", (20_000, 20_000)).save(place / "huge.png")
    (place / "pipeline").mkdir()
    (place / "pipeline" / "model_index.json").write_text("{}")
    (place / "unet").mkdir()
    (place / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    return place


ALL, NONE, CLASSES, UNGUIDED = (f"--num 1 --steps 1 --device cpu --out x.png --model {name}" for name in
                                ("model", "pixels", "classes", "unguided"))
SAID = {
    # what has no effect, or says two things at once, is told, and the picture is drawn
    f"sample 'a dog' {NONE}": (0, "does not read 'caption'.*reads nothing"),
    f"sample --class cat {NONE}": (0, "does not read 'class'"),
    f"sample --guidance-scale 5 {NONE}": (0, "nothing to be guided by: --guidance-scale has no effect"),
    f"sample --guidance-scale 5 {ALL}": (0, "nothing is asked for.* --guidance-scale has no effect"),
    f"sample --task unconditional --guidance-scale 5 {ALL}": (0, "nothing is asked for"),
    f"sample 'a dog' --size 64 {ALL}": (0, r"learned from pictures of \d+ x \d+; at another --size"),
    f"sample --negative 'a cat' {NONE}": (0, "does not read 'caption'"),
    f"sample 'a dog' --class dog {CLASSES}": (0, "does not read 'caption'"),
    f"sample 'a dog' --class cat {ALL}": (0, '"a dog" names dog, the class cat: the model is told both'),
    f"sample 'three dogs' --task layout {ALL}": (0, '"three dogs" names dog, dog, dog, the layout .* told both'),
    f"sample 'a dog' --task class {ALL}": (0, '"a dog" names dog, the class .* told both'),
    f"sample 'a dog' --task semantic --image map.png {ALL}": (0, "names dog, the map nothing: .*told both"),
    f"sample a red apple {ALL} --num 3": (0, "these are 3 captions: one of several words is given in quotes"),
    # who never learned what "no condition" is draws without guidance, unless it is asked for
    f"sample 'a dog' {UNGUIDED}": (0, ""),
    f"sample 'a dog' --task text {UNGUIDED}": (0, ""),
    f"sample 'a dog' --guidance-scale 3 {UNGUIDED}": (2, "never learned the null condition; use guidance_scale=1"),
    # what cannot be is refused
    f"sample {CLASSES}": (2, "this model reads class: give --class"),
    f"sample --class dog {UNGUIDED}": (2, "this model reads caption: give a caption"),
    f"sample 'a dog' --task video {ALL}": (2, "--task video needs a --model of films"),
    f"sample 'a dog' --task unconditional {ALL}": (2, "--task unconditional is without captions and classes"),
    f"sample 'a dog' --size 36 {ALL}": (2, "36 x 36 cannot be: sides must be multiples of 8"),
    f"sample --task layout --size 36 {ALL}": (2, "36 x 36 cannot be: sides must be multiples of 8"),
    f"sample --task layout --size 37 {ALL}": (2, "37 x 37 cannot be: sides must be multiples of 8"),
    f"sample --task semantic --image nothing.png {ALL}": (2, "Cannot read the picture nothing.png"),
    f"sample --task semantic --image model/config.json {ALL}": (2, "Cannot read the picture .*cannot identify"),
    f"sample --task semantic --image model {ALL}": (2, "Cannot read the picture model .*directory"),
    f"sample --task semantic --image huge.png {ALL}": (2, "Cannot read the picture huge.png .*exceeds limit"),
    f"sample {ALL}/config.json": (2, "no folder 'model/config.json'"),
    f"sample {ALL[:-5]}''": (2, "no folder ''"),
    f"sample {ALL[:-5]}pipeline": (2, "a pipeline of diffusers: read it with ldm_mini.released, from_diffusers"),
    f"sample {ALL[:-5]}unet": (2, "its class is UNet2DModel, of diffusers: read it with ldm_mini.released"),
    "evaluate --num 8 --device cpu --task text --model stage": (2, "a first stage alone: it has no tasks"),
    "evaluate --num 8 --device cpu --guidance-scale 3 --model stage": (2, "no tasks, so leave out --guidance-scale 3"),
    "train text --recipe micro --workers 2 --out new": (2, "--workers is for autoencoder, diffusion, video"),
    "train text --recipe micro --compile on --out new": (2, "--compile on is for autoencoder, diffusion, video"),
    # the folder of a training will do
    f"sample 'a dog' {ALL[:-5]}run": (0, ""),
}


@pytest.mark.parametrize("words", SAID)
def test_it_is_said_in_one_line(place, monkeypatch, capsys, words):
    monkeypatch.chdir(place)
    status, told = SAID[words]
    assert main(shlex.split(words)) == status
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "%|" not in line]
    lines = [line for line in said if line.startswith(("note: ", "error: "))]
    assert not told or [line for line in lines if re.search(told, line)], said
    assert all(len(line) < 500 for line in lines) and not any("Traceback" in line for line in said)


def test_what_agrees_is_no_contradiction():
    agree = {"caption": ["a dog", "two red stars", "", "my own words"], "class": torch.tensor([18, -1, 3, 3]),
             "labels": torch.tensor([[18, -1], [5, 5], [1, 2], [3, 4]])}
    assert contradictions(agree) == []
    moves = contradictions({"caption": ["a red apple moves up", "a dog grows"], "class": [18, 18]})
    assert len(moves) == 1 and "moves up" in moves[0]
    more = contradictions({"caption": ["a dog", "two dogs"], "labels": torch.tensor([[18, 18], [18, -1]])})
    assert more == ['"a dog" names dog, the layout dog, dog: the model is told both.',
                    '"two dogs" names dog, dog, the layout dog: the model is told both.']


def damaged(place, tmp_path, change, sums=False):
    """The model's folder after a change, without its list of hashes unless that is the point."""
    folder = tmp_path / "model"
    shutil.copytree(place / "model", folder)
    if not sums:
        (folder / "SHA256SUMS").unlink()
    change(folder)
    return folder


def lines(folder, change):
    path = folder / "SHA256SUMS"
    path.write_text("".join(map(change, path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize("change, words", [
    (lambda f: (f / "SHA256SUMS").write_text(""), "SHA256SUMS is damaged"),
    (lambda f: lines(f, lambda line: "" if "model" in line else line), "does not list model.safetensors"),
    (lambda f: lines(f, lambda line: "" if "config" in line else line), "does not list config.json"),
    (lambda f: ((f / "SHA256SUMS").unlink(), (f / "SHA256SUMS").mkdir()), "SHA256SUMS cannot be read"),
    (lambda f: (f / "config.json").write_text("[]"), "config.json is damaged, its JSON is a list"),
    (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is damaged"),
    (lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()), "does not exist"),
    (lambda f: (f / "model.safetensors").write_bytes(b""), "is damaged")])
def test_a_damaged_folder_is_not_loaded(place, tmp_path, change, words):
    with pytest.raises(FileError, match=words):
        LatentDiffusion.from_pretrained(damaged(place, tmp_path, change, sums=True))


@pytest.mark.parametrize("key, value", [
    ("autoencoder", 3), ("schedule", None), ("conditioner", []), ("image_size", "64"), ("image_size", [64]),
    ("image_size", [32.5, 32]), ("image_size", [64, 64, 3]), ("prediction", "noise"), ("p_uncond", "a"),
    ("scale_factor", None), ("net", None)])
def test_a_config_of_other_values_names_its_file(place, tmp_path, key, value):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, key: value}))

    with pytest.raises(FileError, match="config.json"):
        LatentDiffusion.from_pretrained(damaged(place, tmp_path, change))


@pytest.mark.parametrize("command", ["info {}", "evaluate --num 8 --model {}", "sample --task layout --model {}",
                                     "train diffusion --recipe micro --out {}/new --autoencoder {}"])
def test_a_config_that_is_no_object_is_one_line(tmp_path, capsys, command):
    (tmp_path / "config.json").write_text("7")
    assert main(command.format(tmp_path, tmp_path).split()) == 2
    assert "config.json is damaged, its JSON is a int" in capsys.readouterr().err


def test_a_list_of_hashes_as_sha256sum_writes_it(place, tmp_path):
    folder = damaged(place, tmp_path, lambda f: lines(f, lambda line: line.replace("  ", " *")), sums=True)
    assert set(read_sums(folder)) == {"config.json", "model.safetensors"}
    LatentDiffusion.from_pretrained(folder)


@pytest.mark.parametrize("metadata", [
    None, {"step": "3"}, {"step": "3", "state": "{"}, {"step": "3", "state": '{"step": 3}'},
    {"step": "3", "state": '{"model": {"tensor": "b"}, "rng": {}}'}, {"step": "x", "state": '{"rng": null}'},
    {"step": "3", "state": '{"rng": {"dict": 3}}'}])
def test_what_is_no_training_state_is_named(tmp_path, metadata):
    path = tmp_path / "step-00000003.safetensors"
    save_safetensors(path, {"a": torch.zeros(1)}, metadata)
    with pytest.raises(FileError, match="step-00000003.safetensors holds no training state"):
        load_training_state(path)


@pytest.mark.parametrize("change", [lambda j: j.pop("lists"), lambda j: j["lists"].update(caption=[]),
                                    lambda j: j["lists"].update(caption=["a"]), lambda j: j.update(lists=[1])])
def test_latents_without_their_captions_are_damaged(tmp_path, change):
    LatentCache(torch.zeros(4, 3, 8, 8), {"caption": ["a"] * 4, "class": torch.zeros(4)}).save(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    kept = read_json(tmp_path / "latents.json")
    change(kept)
    (tmp_path / "latents.json").write_text(json.dumps(kept))
    with pytest.raises(FileError, match="latents.json is damaged"):
        LatentCache.load(tmp_path)


@pytest.mark.parametrize("line", ['{"step": 2, "loss": "x"}', '{"step": 2, "loss": [1]}', '{"step": true, "loss": 1}',
                                  '{"loss": 1}', "[" * 100_000, "7", "null", '{"step": 2.5, "loss": 1}'])
def test_a_line_of_the_log_that_is_no_record_is_passed_over(tmp_path, line):
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1, "loss": 2}}\n{line}\n{{"step": 3, "loss": 1}}\n')
    assert [record["step"] for record in runs.read_log(tmp_path)] == [1, 3]
    runs.draw_curve(tmp_path)


@pytest.mark.parametrize("left", ["a damaged checkpoint", "a model"])
def test_what_a_run_left_is_not_begun_anew(tmp_path, left):
    (tmp_path / "recipe.json").write_text('{"steps": 5}')
    path = tmp_path / ("checkpoints/step-00000003.safetensors" if "checkpoint" in left else "model/config.json")
    path.parent.mkdir()
    path.write_text("x")
    with pytest.raises(ValueError, match="already holds a run.*Nothing was changed"):
        runs.find_checkpoint(tmp_path, {"steps": 5})
    with pytest.raises(ValueError, match="no whole checkpoint.*a new --out"):
        runs.find_checkpoint(tmp_path, {"steps": 5}, resume=True)


@pytest.mark.parametrize("recipe, words", [("[1]", "its JSON is a list"), ('{"steps": "4"}', "steps was '4' and is 5"),
                                           ('{"steps": null}', "steps was None"), ("", "holds no JSON")])
def test_a_damaged_recipe_is_told(tmp_path, recipe, words):
    save_training_state(tmp_path / "checkpoints", 3, {"step": 3})
    (tmp_path / "recipe.json").write_text(recipe)
    with pytest.raises(ValueError, match=words):
        runs.find_checkpoint(tmp_path, {"steps": 5}, resume=True)


@pytest.mark.parametrize("owner", ["{", "[]", "", None])
def test_a_lock_holds_whatever_its_note_says(tmp_path, owner):
    (tmp_path / "recipe.json").write_text("{}")
    with runs.owned(tmp_path):
        (tmp_path / "owner.json").unlink() if owner is None else (tmp_path / "owner.json").write_text(owner)
        with pytest.raises(ValueError, match="belongs to a run that is going on .process . on"), runs.owned(tmp_path):
            pass


def test_where_there_are_no_locks_a_file_stands_for_one(tmp_path, monkeypatch):
    def none(self, **more):
        raise NotImplementedError

    monkeypatch.setattr(runs.filelock.FileLock, "acquire", none)
    with runs.owned(tmp_path / "run"):
        with pytest.raises(ValueError, match="going on .*If it died, delete .*lock"), runs.owned(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists()


WEIGHTS = {
    "a zip of something else": lambda f: zipfile.ZipFile(f, "w").writestr("a", "b"),
    "an empty zip": lambda f: zipfile.ZipFile(f, "w").close(),
    "arrays of NumPy": lambda f: np.savez(f.with_suffix(".npz"), a=np.zeros(3)) or f.with_suffix(".npz").rename(f),
    "numbers for names": lambda f: torch.save({0: torch.zeros(1)}, f),
    "nothing": lambda f: torch.save({}, f),
    "a tensor": lambda f: torch.save(torch.zeros(3), f),
    "an optimizer": lambda f: torch.save(torch.optim.Adam([torch.zeros(1)]).state_dict(), f),
    "a state dict inside": lambda f: torch.save({"params_ema": {"a": torch.zeros(1)}, "step": 3}, f),
    "a page of the web": lambda f: f.write_text("<html>404</html>"),
    "a picture": lambda f: Image.new("L", (2, 2)).save(f, "PNG"),
    "a GGUF file": lambda f: f.write_bytes(b"GGUF" + bytes(100)),
    "half a file": lambda f: (torch.save({"a": torch.zeros(1000)}, f), f.write_bytes(f.read_bytes()[:-500])),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.skipif(torch.__version__ < (2, 10), reason="refused as a pickle")
def test_a_file_of_no_weights_says_what_it_is(tmp_path, name):
    WEIGHTS[name](tmp_path / "weights.ckpt")
    with pytest.raises(FileError, match="weights.ckpt (is no file of weights|holds no state_dict)") as error:
        read_weights(tmp_path / "weights.ckpt")
    assert "\n" not in str(error.value) and ("params_ema" in str(error.value)) is (name == "a state dict inside")


@pytest.mark.parametrize("value", [torch.ones(3, 3, dtype=torch.int64), torch.full((3, 3), torch.nan)])
def test_weights_of_others_are_numbers(value):
    layer = on_meta(torch.nn.Linear, 3, 3, False)
    with pytest.raises(FileError, match="these are whole numbers or not finite: .'weight'."):
        fit(layer, {"weight": "w"}, {"w": value})


def test_maps_are_read_at_any_depth_and_not_squashed(tmp_path):
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 8:24] = 5                                            # the middle square, alone
    for i, picture in enumerate((wide, wide.astype(np.uint16), wide.astype(np.int32))):
        Image.fromarray(picture).save(tmp_path / f"{i}.tif")
        batch = batch_from_files("semantic", 16, 2, tmp_path / f"{i}.tif")
        assert (batch["semantic"] == 5).all() and batch["semantic"].shape == (2, 16, 16)
    Image.fromarray(wide > 0).save(tmp_path / "bits.png")
    assert (batch_from_files("semantic", 16, 1, tmp_path / "bits.png")["semantic"] == 1).all()


@pytest.mark.parametrize("name, content, captions", [
    ("cat.txt", "\ufeffa dog".encode(), ["a dog"]), ("cat.TXT", b"a dog", ["a dog"]),
    ("cat.txt", "caf\xe9".encode("latin-1"), "Cannot read the caption .*cat.txt .*Save it as UTF-8")])
def test_captions_beside_pictures_are_read_or_refused(place, tmp_path, name, content, captions):
    shutil.copy(place / PNG, tmp_path / "cat.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / name).write_bytes(content)
    if isinstance(captions, list):
        assert ImageFolderDataset(tmp_path, 16).captions == captions
    else:
        with pytest.raises(ValueError, match=captions):
            ImageFolderDataset(tmp_path, 16)

"""Models in folders, as Hugging Face keeps them: `config.json` says what to build, `model.safetensors` has the weights.

A part (a network, a config) keeps its constructor's arguments under their own names. That is all this file needs to
describe the part as JSON, and to build it again:

    {"class": "conditioners.TextConditioner", "text_transformer": {"class": "text.TextTransformer", "width": 128, ...}}

An argument that is neither JSON nor a part, such as a tokenizer, is left out if it has a default, which is built then.
Where an attribute has to be something else, the part has a dict `arguments` of what is to be written instead.
"""

import hashlib
import json
import math
import warnings
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, equal, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .files import FileError, check_sums, checksums, data_path, read_json, sha256, write_json, write_sums
from .weights import SHARD_BYTES, load_weights, save_weights, weight_files

JSON = (bool, int, float, str, list, tuple, dict, type(None))
CONFIG = "config.json"


def describe(part):
    """JSON that `build` turns back into this part. A part of a class from elsewhere is named only, as "foreign"."""
    if isinstance(part, (list, tuple, nn.ModuleList)):
        return [describe(item) for item in part]
    if isinstance(part, (*JSON, Tensor)):
        return part.tolist() if isinstance(part, Tensor) else part
    # a class by its place in ldm_mini, and each argument of its constructor
    kind = type(part)
    if not is_ours(kind):
        return {"foreign": kind.__name__}
    described = {"class": f"{kind.__module__}.{kind.__name__}".removeprefix(f"{__package__}.")}
    for name, argument in signature(kind).parameters.items():
        value = part.arguments[name] if name in getattr(part, "arguments", ()) else getattr(part, name)
        if isinstance(value, (*JSON, Tensor, nn.Module)) or is_dataclass(value) or argument.default is argument.empty:
            described[name] = describe(value)
    return described


def build(described, *place: str):
    """The part that was described, with fresh weights. Lists come as tuples; what is built already stays as it is.

    Raises FileError, which begins with the place (a file, then keys): for a name that is no network or dataclass of
    ldm_mini, so that a config runs no other code, and for missing, unknown or wrong arguments.
    """
    if isinstance(described, (list, tuple)):
        return tuple(build(item, *place, str(i)) for i, item in enumerate(described))
    if not isinstance(described, dict):
        return described
    # the class that is named; a dict that names none is a plain argument
    name = described.get("class", described.get("foreign"))
    kind = dict if name is None else _find_class(str(name))
    if kind is None:
        raise FileError(f"{', '.join(place)}: a {name} is no part of ldm_mini. Build it as it was, and pass it to what "
                        "loads this as net=, autoencoder= or conditioner=.")
    # from the inside out: arguments that are parts themselves first
    arguments = {key: build(value, *place, key) for key, value in described.items() if key != "class"}
    # a number or a word that is none would be stumbled over much later, by a part that cannot name it
    for key, argument in signature(kind).parameters.items() if kind is not dict else ():
        kinds = {int: (int,), float: (float, int), bool: (bool,), str: (str,)}.get(argument.annotation)
        if kinds and key in arguments and type(value := arguments[key]) not in kinds:
            raise FileError(f"{', '.join((*place, key))}: a {name} wants {kinds[0].__name__}, not {value!r:.40}.")
    try:
        return kind(**arguments)
    except (FileError, ImportError):                            # which say themselves what is missing
        raise
    except Exception as error:                                  # a wrong value can fail anywhere in a constructor
        raise FileError(f"{', '.join(place)}: no {name} can be built of this: {error}") from error


def _find_class(name: str) -> type | None:
    """The class with a name such as "unet.UNet", if `build` may make one."""
    file, _, kind = name.rpartition(".")
    try:
        found = getattr(import_module(f"{__package__}.{file}"), kind)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if is_ours(found) and found.__module__ == f"{__package__}.{file}" else None


def is_ours(kind) -> bool:
    """Whether it is a network or a dataclass of ldm_mini."""
    return (isinstance(kind, type) and kind.__module__.startswith(f"{__package__}.")
            and (issubclass(kind, nn.Module) or is_dataclass(kind)))


def save(folder, model: nn.Module, half=False, card: dict | None = None, shard_bytes: int = SHARD_BYTES,
         base: tuple | None = None) -> Path:
    """Write a model. half: parameters as float16; buffers stay as they are. card: JSON that stays with the weights.

    base: (another saved model, {how names begin here: how there}); what is equal there is not stored again, but read
    from there, and only as long as that model is what it is now.
    """
    folder, tensors, borrowed = Path(folder), model.state_dict(), {}
    half = dict(model.named_parameters()) if half else ()
    if base is not None:
        other, prefixes = base
        theirs = _from_base(tensors, find(other), prefixes)
        tensors = {name: v for name, v in tensors.items()
                   if name not in theirs or not _same(v.half() if name in half else v, theirs[name])}
        borrowed = {"base": {"model": str(other), "content": content_hash(other), "prefixes": prefixes}}
    names = save_weights(folder, tensors, half, shard_bytes)
    write_json(folder / CONFIG, {**describe(model), **borrowed, "card": card or {}})
    write_sums(folder, {name: sha256(folder / name) for name in (CONFIG, *names)})
    return folder


def push(folder, repository: str, private: bool | None = None) -> str:
    """Publish a saved model as "owner/name" on the Hugging Face Hub, which `find` gets back; returns its address.

    The folder goes as it is, once its files are what was written: a README.md, if there is one, is its card there. You
    have to be logged in (`hf auth login`). FileError for no model, or a damaged one, and for what the Hub says.
    """
    folder = Path(folder)
    check_sums(folder)
    read_json(folder / CONFIG), weight_files(folder)            # or they raise
    from huggingface_hub import HfApi  # slow to import, hence only here

    try:
        hub = HfApi(library_name="ldm_mini")
        name = hub.create_repo(repository, private=private, exist_ok=True).repo_id
        hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=["*.json", "*.safetensors", "*.md", "*.png"])
    except Exception as error:                                  # offline, no right to write, a bad name: many classes
        raise FileError(f"{folder} could not be published as {repository!r} ({type(error).__name__}: {error}). Are you "
                        "logged in (`hf auth login`)?") from error
    return f"https://huggingface.co/{name}"


def load(name_or_folder, kind: str, device=None, **parts) -> nn.Module:
    """A saved model of the class `kind`, in evaluation mode; `find` says what names mean. Raises FileError.

    parts: of your own classes, which no config describes, to be given their weights; None = as described.
    """
    folder = find(name_or_folder)
    config = read_config(folder, kind)
    check_sums(folder, CONFIG, *(file.name for file in weight_files(folder)))
    described = config | {name: part for name, part in parts.items() if part is not None}
    described.pop("card", None)
    base = described.pop("base", None)
    theirs = None if base is None else _base(base, folder)
    with _no_more_parameters_than([*weight_files(folder), *(weight_files(theirs) if theirs else ())]):
        model = build(described, str(folder / CONFIG))
    weights = load_weights(folder)
    if theirs:
        weights = _from_base(model.state_dict(), theirs, base["prefixes"]) | weights
    for name, value in model.state_dict().items():
        if name in weights and value.is_floating_point() and not (
                weights[name].is_floating_point() and weights[name].isfinite().all()):
            raise FileError(f"{name} in {folder} is {weights[name].dtype} or not finite: these are no trained weights.")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise FileError(f"the weights in {folder} were made for another model. {error!s:.2000}") from None
    return model.eval().to(device)


def _from_base(names, base: Path, prefixes: dict) -> dict:
    """{name: tensor of the model in `base`, whose name begins otherwise}; the longest prefix counts."""
    theirs, found = load_weights(base), {}
    for name in names:
        begin = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if begin is not None and (other := prefixes[begin] + name[len(begin):]) in theirs:
            found[name] = theirs[other]
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and equal(a.cpu(), b)


def _base(base, folder: Path) -> Path:
    """The folder of the model that a config names as its base. Raises FileError if it names none, or if that model is
    no longer what it was."""
    if not isinstance(base, dict) or not all(isinstance(base.get(key), str) for key in ("model", "content")) or (
            not isinstance(prefixes := base.get("prefixes"), dict)) or not all(
            isinstance(prefix, str) for prefix in prefixes.values()):
        raise FileError(f"{folder / CONFIG}, base: it names a model, its content and prefixes; got {base!r:.80}.")
    if "/" in base["model"] and not Path(base["model"]).is_dir():               # a config shall fetch nothing by itself
        raise FileError(f"{folder} holds what was learned on top of {base['model']}: there is no such folder here.")
    theirs = find(base["model"])
    if content_hash(theirs) != base["content"]:
        raise FileError(f"{folder} holds what was learned on top of {base['model']}, which has other weights now: "
                        "use the version of both that came together.")
    return theirs


@contextmanager
def _no_more_parameters_than(files: list[Path]):
    """Inside, modules get no more numbers than twice what these files hold: a config must not fill the memory."""
    held = 0
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                held += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise FileError(f"{path} is truncated or damaged ({error}). Fetch or write it again.") from None
    left = 2 * held + 2**20

    def count(module, name, parameter):
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise FileError(f"{files[0].parent / CONFIG} describes a larger model than its weights, {held} numbers.")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def load_autoencoder(name_or_folder, device=None) -> nn.Module:
    """A first stage: one that was saved alone, or that of a LatentDiffusion. Raises FileError."""
    folder = find(name_or_folder)
    if str(read_json(folder / CONFIG).get("class")).rpartition(".")[2] != "LatentDiffusion":
        return load(folder, "Autoencoder", device)
    first = load(folder, "LatentDiffusion", device).autoencoder
    if first is None:
        raise FileError(f"{folder} draws pixels: it has no first stage.")
    return first.requires_grad_(True)


def read_config(folder, kind: str) -> dict:
    """The config of a folder that `save` wrote for a model of this class. Raises FileError for any other."""
    folder = Path(folder)
    theirs = ": read it with ldm_mini.released, from_diffusers or unet_from_diffusers"
    if (folder / "model_index.json").is_file():
        raise FileError(f"{folder} is a pipeline of diffusers{theirs}.")
    if not (folder / CONFIG).exists():
        raise FileError(f"there is no model in {folder.resolve()}: neither it nor a folder `model` in it has {CONFIG}.")
    config = read_json(folder / CONFIG)
    name = str(config.get("class", config.get("foreign", config.get("_class_name"))))
    if name.rpartition(".")[2] != kind:
        raise FileError(f"{folder / CONFIG} describes no {kind} of ldm_mini: its class is {name}"
                        + (f", of diffusers{theirs}." if "_class_name" in config else "."))
    return config


def find(name_or_folder) -> Path:
    """The local folder of a model: the bare name of shipped weights in `data/weights/`, checked by hash; else a folder;
    else "owner/name" on the Hugging Face Hub, or "owner/name@revision", downloaded once. FileError: what was tried."""
    folder, name = Path(name_or_folder), str(name_or_folder)
    shipped = sorted(file.split("/")[1] for file in checksums() if file.endswith(f"/{CONFIG}"))
    if name in shipped:
        if folder.is_dir():
            warnings.warn(f"{name} means the shipped weights; the folder of that name here is ./{name}", stacklevel=2)
        return [data_path(*file.split("/")) for file in checksums() if file.startswith(f"weights/{name}/")][0].parent
    if folder.is_dir() and name:
        # the folder of a training holds its model in one of its own
        return folder if (folder / CONFIG).is_file() or not (folder / "model" / CONFIG).is_file() else folder / "model"
    repository, _, revision = name.partition("@")
    # "runs/nothing" is a mistyped path where there is a folder "runs"
    if repository.count("/") != 1 or name.startswith((".", "/")) or repository.endswith("/") or folder.parent.is_dir():
        raise FileError(f"there is no folder {name!r}, nor such shipped weights; shipped are {shipped}. "
                        "A model on the Hugging Face Hub is named owner/name, or owner/name@revision.")
    from huggingface_hub import snapshot_download  # slow to import, hence only here

    try:
        return Path(snapshot_download(repository, revision=revision or None,
                                      allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:                                  # offline, not found, no access: many classes
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]
        raise FileError(f"there is no folder {name!r}, and it could not be had from the Hugging Face Hub ({reason}). "
                        "Is there a network? Is the name right?") from error


def content_hash(name_or_folder) -> str:
    """A SHA-256 of what a saved model is, its config and weights, whatever its folder is called. Raises FileError."""
    folder = find(name_or_folder)
    described = {key: value for key, value in read_json(folder / CONFIG).items() if key != "card"}
    parts = [json.dumps(described, sort_keys=True), *map(sha256, weight_files(folder))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()

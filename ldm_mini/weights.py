"""Weights in a folder, as Hugging Face keeps them: one safetensors file, or shards and an index that names them."""

from pathlib import Path

from torch import equal

from .files import SUMS, FileError, load_safetensors, read_json, save_safetensors, write_json

SHARD_BYTES = 16 * 2**20
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names."""
    folder, names = Path(folder), [WEIGHTS]
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) and all(
            isinstance(name, str) and name == Path(name).name for name in shards.values()) else []
        if not names:
            raise FileError(f"{folder / INDEX} is damaged: its weight_map names no files of this folder. Fetch or "
                            "write it again.")
    for name in names:
        if not (folder / name).is_file():
            raise FileError(f"{folder / name} does not exist.")
    return [folder / name for name in names]


def save_weights(folder, tensors: dict, half=(), shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write {name: tensor} into a folder as Hugging Face does; returns the names of the files.

    One `model.safetensors` if it stays within `shard_bytes`, else shards of at most that size (a larger single tensor
    gets a shard of its own) and `model.safetensors.index.json`. The tensors named in `half` are stored as float16.
    """
    folder, shards, filled = Path(folder), [{}], 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, v in tensors.items():
        if name in half and v.is_floating_point():
            if not equal(v.half().isfinite(), v.isfinite()):
                raise ValueError(f"{name} has values beyond float16's 65504: save it without half precision.")
            v = v.half()
        size = v.nbytes + len(name.encode()) + 160              # and its line in the header, at most
        if shards[-1] and filled + size > shard_bytes - 256:
            shards, filled = [*shards, {}], 0
        shards[-1][name] = v
        filled += size
    numbers = [f"-{i:05}-of-{len(shards):05}" for i in range(1, len(shards) + 1)] if shards[1:] else [""]
    files = {f"model{number}.safetensors": shard for number, shard in zip(numbers, shards, strict=True)}
    for file, shard in files.items():
        save_safetensors(folder / file, shard)
    names = list(files)
    if len(files) > 1:
        weight_map = {name: file for file, shard in files.items() for name in shard}
        total = sum(v.nbytes for shard in shards for v in shard.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        names.append(INDEX)
    # of an earlier save, with other weights or another number of shards
    shards = (path.name for path in folder.glob("model-?????-of-?????.safetensors"))
    for old in {WEIGHTS, INDEX, SUMS, *shards} - {*names}:
        (folder / old).unlink(missing_ok=True)
    return names


def load_weights(folder) -> dict:
    """{name: CPU tensor} of a folder that `save_weights`, or any Hugging Face library, wrote. Errors: FileError."""
    return {name: v for file in weight_files(folder) for name, v in load_safetensors(file).items()}

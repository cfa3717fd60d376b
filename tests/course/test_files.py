"""A missing, foreign or damaged data file is named, with the remedy, before anything is read from it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_mini import files

DATA = files.data_dir()


@pytest.fixture(autouse=True)
def fresh_caches():
    caches = files.data_dir, files.checksums, files.data_path
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A small data folder with its own list, in place of the real one."""
    data = tmp_path / "data"
    for folder in ("sprites", "weights"):
        (data / folder).mkdir(parents=True)
    shutil.copy(DATA / "sprites" / "nouns.csv", data / "sprites")
    (data / "weights" / "a b.bin").write_bytes(bytes(range(256)))
    shutil.copy(DATA / "checksums.py", data)
    assert check(data, []).returncode == 0
    monkeypatch.setattr(files, "data_dir", lambda: data)
    return data


def check(data, options=("--check",)):
    return subprocess.run([sys.executable, data / "checksums.py", *options], capture_output=True, text=True)


def test_every_shipped_file_is_as_listed():
    result = check(DATA)
    assert result.returncode == 0, result.stdout
    for name in files.checksums():
        assert files.data_path(*name.split("/")) == DATA / name
        assert "\\" not in name and ".." not in name and not Path(name).is_absolute()


def damage(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name, do, said, told", [
    ("weights/a b.bin", damage, "changed", "is damaged.*git checkout -- data"),
    ("sprites/nouns.csv", Path.unlink, "missing", "is missing.*git checkout -- data"),
    ("weights/mine.bin", Path.touch, "not listed", r"is not in data/SHA256SUMS.*python data/checksums\.py")])
def test_what_is_wrong_with_a_file_is_told(copy, name, do, said, told):
    do(copy / name)
    with pytest.raises(files.FileError, match=f"data/{name} {told}"):
        files.data_path(*name.split("/"))
    for other in {"weights/a b.bin", "sprites/nouns.csv"} - {name}:
        assert files.data_path(*other.split("/")) == copy / other
    result = check(copy)
    assert result.returncode == 1 and result.stdout.strip() == f"{said}: {name}"


def test_list_is_sorted_and_leaves_out_texts_and_hidden_files(copy):
    (copy / "weights" / "README.md").write_text("about")
    (copy / "weights" / ".gitignore").write_text("x")
    (copy / "sprites" / "z.png").write_bytes(b"z")
    check(copy, [])
    lines = (copy / "SHA256SUMS").read_bytes().decode().split("\n")
    assert [line[66:] for line in lines] == ["sprites/nouns.csv", "sprites/z.png", "weights/a b.bin", ""]
    assert lines[0][:64] == files.sha256(copy / "sprites" / "nouns.csv")


def test_installed_package_reads_its_own_data(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "ldm_mini"
    for folder in (package / "_data", tmp_path / "site-packages" / "data"):
        folder.mkdir(parents=True)
        (folder / "SHA256SUMS").write_text("")
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    assert files.data_dir() == (package / "_data").resolve()


def test_no_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "ldm_mini" / "files.py"))
    with pytest.raises(files.FileError, match="data folder was not found"):
        files.data_dir()

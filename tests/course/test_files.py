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
    yield
    for function in (files.data_dir, files.checksums, files.data_path):
        getattr(function, "cache_clear", lambda: None)()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A small data folder with its own list, in place of the real one."""
    data = tmp_path / "data"
    (data / "sprites").mkdir(parents=True)
    (data / "weights").mkdir()
    shutil.copy(DATA / "sprites" / "nouns.csv", data / "sprites")
    (data / "weights" / "a b.bin").write_bytes(bytes(range(256)))
    shutil.copy(DATA / "checksums.py", data)
    subprocess.run([sys.executable, data / "checksums.py"], check=True, capture_output=True)
    monkeypatch.setattr(files, "data_dir", lambda: data)
    files.checksums.cache_clear()
    files.data_path.cache_clear()
    return data


def check(data):
    return subprocess.run([sys.executable, data / "checksums.py", "--check"], capture_output=True, text=True)


def test_every_shipped_file_is_as_listed():
    result = check(DATA)
    assert result.returncode == 0, result.stdout
    for name in files.checksums():
        assert files.data_path(*name.split("/")) == DATA / name


def test_intact_file(copy):
    assert files.data_path("sprites", "nouns.csv") == copy / "sprites" / "nouns.csv"
    assert files.data_path("weights", "a b.bin") == copy / "weights" / "a b.bin"
    assert check(copy).returncode == 0


def test_damaged_file(copy):
    path = copy / "weights" / "a b.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(files.FileError, match=r"data/weights/a b\.bin is damaged.*git checkout -- data"):
        files.data_path("weights", "a b.bin")
    assert files.data_path("sprites", "nouns.csv").is_file()
    result = check(copy)
    assert result.returncode == 1 and result.stdout.strip() == "changed: weights/a b.bin"


def test_missing_file(copy):
    (copy / "sprites" / "nouns.csv").unlink()
    with pytest.raises(files.FileError, match=r"data/sprites/nouns\.csv is missing.*git checkout -- data"):
        files.data_path("sprites", "nouns.csv")
    result = check(copy)
    assert result.returncode == 1 and result.stdout.strip() == "missing: sprites/nouns.csv"


def test_unlisted_file(copy):
    (copy / "weights" / "mine.bin").write_bytes(b"mine")
    with pytest.raises(files.FileError, match=r"data/weights/mine\.bin is not listed.*python data/checksums\.py"):
        files.data_path("weights", "mine.bin")
    result = check(copy)
    assert result.returncode == 1 and result.stdout.strip() == "not listed: weights/mine.bin"


def test_list_is_sorted_and_leaves_out_texts_and_hidden_files(copy):
    (copy / "weights" / "README.md").write_text("about")
    (copy / "weights" / ".gitignore").write_text("x")
    (copy / "sprites" / "z.png").write_bytes(b"z")
    subprocess.run([sys.executable, copy / "checksums.py"], check=True, capture_output=True)
    lines = (copy / "SHA256SUMS").read_bytes().decode().split("\n")
    assert [line[66:] for line in lines] == ["sprites/nouns.csv", "sprites/z.png", "weights/a b.bin", ""]
    assert lines[0][:64] == files.sha256(copy / "sprites" / "nouns.csv")


def test_installed_package_reads_its_own_data(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "ldm_mini"
    for folder in (package / "_data", tmp_path / "site-packages" / "data"):
        folder.mkdir(parents=True)
        (folder / "SHA256SUMS").write_text("")
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    files.data_dir.cache_clear()
    assert files.data_dir() == (package / "_data").resolve()


def test_no_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "ldm_mini" / "files.py"))
    files.data_dir.cache_clear()
    with pytest.raises(files.FileError, match="data folder was not found"):
        files.data_dir()


def test_names_in_the_list_are_relative_and_portable():
    for name in files.checksums():
        assert "\\" not in name and ".." not in name and not Path(name).is_absolute()

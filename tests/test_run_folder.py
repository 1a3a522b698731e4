"""run_folder.py: the old file or the new one, and never a part."""

import os
from pathlib import Path

import pytest

from capsnet.run_folder import is_new_or_empty, new_folder, replace_file


def put(path, text):
    with replace_file(str(path)) as temporary, open(temporary, "w") as file:
        file.write(text)


def test_until_the_end_there_is_only_the_old_file(tmp_path):
    put(tmp_path / "log.csv", "old")
    with replace_file(str(tmp_path / "log.csv")) as temporary:
        assert os.path.dirname(temporary) == str(tmp_path)  # a rename, not a copy
        assert temporary.endswith(".csv")
        with open(temporary, "w") as file:
            file.write("new")
        assert (tmp_path / "log.csv").read_text() == "old"
    assert (tmp_path / "log.csv").read_text() == "new"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("written", ["", "half"])
def test_the_old_file_stays_if_writing_fails(tmp_path, error, written):
    def fail():
        with replace_file(str(tmp_path / "log.csv")) as temporary:
            if written:
                Path(temporary).write_text(written)
            raise error

    put(tmp_path / "log.csv", "old")
    pytest.raises(type(error), fail)
    assert (tmp_path / "log.csv").read_text() == "old"
    assert os.listdir(tmp_path) == ["log.csv"]


def test_a_name_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put("log.csv", "new")
    assert os.listdir() == ["log.csv"]


def replace_as_windows(source, target):
    """What `os.replace` does there: no folder takes the place of another."""
    if os.path.isdir(target):
        raise PermissionError(13, "Access is denied", target)
    os.rename(source, target)


@pytest.mark.parametrize("name", ["empty", "link", "new/page"])
def test_a_folder_is_there_with_all_its_files_or_not_at_all(
    tmp_path, name, monkeypatch
):
    monkeypatch.setattr(os, "replace", replace_as_windows)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty", target_is_directory=True)
    folder = tmp_path / name
    assert is_new_or_empty(str(folder))

    def fail():
        with new_folder(str(folder)) as written:
            Path(written, "a part").write_bytes(b"x")
            raise OSError("disk full")

    pytest.raises(OSError, fail)
    assert is_new_or_empty(str(folder))
    with new_folder(str(folder)) as written:
        Path(written, "index.html").write_bytes(b"x")
    assert (folder / "index.html").read_bytes() == b"x"
    assert not is_new_or_empty(str(folder))
    kept = {"empty", "link", Path(name).parts[0]}
    assert set(os.listdir(tmp_path)) == kept  # nothing temporary

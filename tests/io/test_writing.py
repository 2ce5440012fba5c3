"""Files that appear when they are whole."""

import threading

import pytest

from lvit_hf.io.writing import check_replaceable, replacing


def test_two_writers_at_once_do_not_meet_and_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "report.json"
    both_write = threading.Barrier(2)

    def write(text: str):
        with replacing(path) as part:
            part.write_text(text)
            both_write.wait(10)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = path.read_text()
    assert written in ("first", "second")
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        1 / 0
    assert path.read_text() == written and [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_appears_once(tmp_path):
    for number in range(2):
        try:
            with replacing(tmp_path / "shard") as part:
                part.mkdir()
                (part / "row").write_text(str(number))
        except OSError:
            assert number == 1
    assert (tmp_path / "shard" / "row").read_text() == "0"
    assert [file.name for file in tmp_path.iterdir()] == ["shard"]


def test_what_is_not_finished_lies_hidden_beside_its_place(tmp_path):
    """On the same disk, so that the file appears in one step."""
    with replacing(tmp_path / "report.json") as part:
        part.write_text("half")
        [folder] = tmp_path.iterdir()
        assert part.parent == folder
        assert folder.name.startswith(".report.json.") and folder.name.endswith(".part")


def test_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    with replacing(path) as part:
        part.touch()
    assert path.exists()


def test_only_what_a_command_wrote_is_written_over(tmp_path):
    check_replaceable(tmp_path / "new.json", "mark")
    (tmp_path / "own.json").write_text("with the mark in it")
    check_replaceable(tmp_path / "own.json", "mark")
    (tmp_path / "other.json").write_text("a letter")
    for name in ("other.json", ""):
        with pytest.raises(FileExistsError, match="exists, and this command did not write it"):
            check_replaceable(tmp_path / name, "mark")

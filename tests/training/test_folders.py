"""Which images a folder has, and what is said of them."""

import logging
import sys
from pathlib import Path
from time import process_time

import pytest

from ldm.errors import InputError
from ldm.training.folders import captions, entries
from tests.training.albums import png, write

A, B = png(0), png(1)
CSV = 'file_name,text\r\na.png,"one, ""1"""\r\nd/b.png,\r\n'
JSON = '{"file_name": "a.png", "text": "one"}\n\n{"file_name": "d/b.png", "text": "two ü"}\n'
KINDS = {
    "jsonl": ({"a.png": A, "d/b.png": B, "metadata.jsonl": JSON}, {"a.png": "one", "d/b.png": "two ü"}),
    "jsonl with a mark": ({"a.png": A, "d/b.png": B, "metadata.jsonl": "\ufeff" + JSON},
                          {"a.png": "one", "d/b.png": "two ü"}),
    "jsonl with more columns": (
        {"a.png": A, "metadata.jsonl": '{"text": "one", "n": 3, "file_name": "./a.png"}'}, {"a.png": "one"}
    ),
    "csv": ({"a.png": A, "d/b.png": B, "metadata.csv": CSV},
            {"a.png": 'one, "1"', "d/b.png": ""}),
    "csv with empty columns": ({"a.png": A, "metadata.csv": "file_name,,text,\na.png,,one,\n"},
                               {"a.png": "one"}),
    "caption files in folders": (
        {"1_cat/00.png": A, "1_cat/00.txt": "one", "d/00.png": B, "d/00.txt": "two", "c.png": A, "c.txt": ""},
        {"1_cat/00.png": "one", "c.png": "", "d/00.png": "two"},
    ),
    "caption files": ({"a.png": A, "a.txt": " one \n", "b.JPG": B, "b.caption": "two"},
                      {"a.png": "one", "b.JPG": "two"}),
    "class folders": ({"dog/b.png": B, "cat/a.png": A, "cat/deep/c.png": A},
                      {"cat/a.png": 0, "cat/deep/c.png": 0, "dog/b.png": 1}),
    "images alone": ({"b.png": B, "a.png": A, "README.txt": "about", ".hidden.png": A, ".git/x.png": A},
                     {"a.png": None, "b.png": None}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_folder_is_told_from_what_is_there(tmp_path, kind):
    files, wanted = KINDS[kind]
    found = entries(write(tmp_path, files))
    assert {entry.name: entry.prompt for entry in found} == wanted
    assert [entry.name for entry in found] == sorted(wanted)
    assert all(entry.path.read_bytes() == files[entry.name] for entry in found)


ROW = '{{"file_name": "{}", "text": "x"}}\n'
REFUSED = {
    "empty": ({"notes.md": "x"}, "has no images; put some in"),
    "two tables": ({"a.png": A, "metadata.jsonl": JSON, "metadata.csv": "file_name,text\n"},
                   r"has metadata\.jsonl and metadata\.csv; keep one kind"),
    "table and captions": ({"a.png": A, "a.txt": "x", "metadata.jsonl": ROW.format("a.png")},
                           r"metadata\.jsonl and caption files such as a\.txt"),
    "captions and classes": (
        {"x/a.png": A, "x/a.txt": "x", "y/b.png": B},
        r"1 of 2 images have no caption file, y/b\.png is the first; write them, or for class folders take "
        r"the others out, such as x/a\.txt$",
    ),
    "classes and alone": ({"x/a.png": A, "b.png": B}, "class folders such as x and images beside"),
    "some captions": ({"a.png": A, "a.txt": "x", "b.png": B},
                      r"1 of 2 images have no caption file, b\.png is the first; .* or take the images out"),
    "two captions": ({"a.png": A, "a.txt": "x", "a.caption": "y"}, r"a\.caption and a\.txt for one image"),
    "shared caption": ({"a.png": A, "a.jpg": A, "a.txt": "x"}, r"a\.txt belongs to two images"),
    "an empty class": ({"x/a.png": A, "y/notes.md": "n"}, "class folder y has no images"),
    "not listed": ({"a.png": A, "b.png": B, "metadata.jsonl": ROW.format("a.png")},
                   r"1 images have no caption in metadata\.jsonl, b\.png"),
    "twice": ({"a.png": A, "metadata.jsonl": ROW.format("a.png") + ROW.format("./a.png")},
              r"line 2 names a\.png again, after line 1"),
    "missing": ({"a.png": A, "metadata.jsonl": ROW.format("a.png") + ROW.format("z.png")},
                r"line 2 names z\.png, which is missing \(1 of 2 are\)"),
    "a name of a kilometre": ({"metadata.jsonl": ROW.format("z" * 5000)}, "which is missing"),
    "a name with a zero": ({"metadata.jsonl": ROW.format("a\\u0000")}, "which is missing"),
    "above": ({"a.png": A, "metadata.jsonl": ROW.format("../a.png")}, "is outside the folder"),
    "above, hidden": ({"a.png": A, "metadata.jsonl": ROW.format("x/../../a.png")}, "is outside the folder"),
    "absolute": ({"a.png": A, "metadata.jsonl": ROW.format("/etc/a.png")}, "is outside the folder"),
    "a drive": ({"a.png": A, "metadata.jsonl": ROW.format("C:/a.png")}, "is outside the folder"),
    "no name": ({"metadata.jsonl": ROW.format("")}, "is outside the folder"),
    "no text": ({"a.png": A, "metadata.jsonl": '{"file_name": "a.png"}'}, "line 1 has no text 'text'"),
    "a number": ({"a.png": A, "metadata.jsonl": '{"file_name": "a.png", "text": 1}'}, "has no text 'text'"),
    "no JSON": ({"a.png": A, "metadata.jsonl": ROW.format("a.png") + "{"}, "line 2 is no JSON"),
    "deep JSON": ({"a.png": A, "metadata.jsonl": "[" * 100_000}, "line 1 is no JSON"),
    "no object": ({"a.png": A, "metadata.jsonl": "[1]"}, "line 1 must be a JSON object, not"),
    "no rows": ({"metadata.jsonl": "\n"}, "is empty; write a line for every image"),
    "half a character": ({"a.png": A, "metadata.jsonl": '{"file_name": "a.png", "text": "\\ud800"}'},
                         "line 1 is not valid Unicode"),
    "not UTF-8, table": ({"a.png": A, "metadata.jsonl": b'{"text": "\xff"}'}, "is not UTF-8: .* at byte 10"),
    "not UTF-8, caption": ({"a.png": A, "a.txt": b"gr\xfcn"}, r"a\.txt is not UTF-8: .* at byte 2"),
    "no column": ({"a.png": A, "metadata.csv": "file,text\na.png,x\n"}, "has no column file_name"),
    "an empty table": ({"a.png": A, "metadata.csv": ""}, "has no column file_name"),
    "an open quote": ({"a.png": A, "metadata.csv": 'file_name,text\na.png,"x\n'}, "is no CSV"),
    "a comma": ({"a.png": A, "metadata.csv": "file_name,text\na.png,a cat, asleep\n"},
                r"metadata\.csv line 2 has more fields than columns; quote the text"),
    "a column twice": ({"a.png": A, "metadata.csv": "file_name,text,text\na.png,x,y\n"},
                       r"metadata\.csv line 1 has the column 'text' twice; keep one"),
    "a short row": ({"a.png": A, "metadata.csv": "file_name,text\na.png\n"}, "line 2 has no text 'text'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_leaves_a_question_is_refused_by_a_sentence(tmp_path, case):
    files, wanted = REFUSED[case]
    with pytest.raises(InputError, match=wanted):
        entries(write(tmp_path, files))


def test_a_file_is_no_folder(tmp_path):
    for path in (tmp_path / "none", write(tmp_path, {"a.png": A}) / "a.png"):
        with pytest.raises(InputError, match="is not a folder; give one with images"):
            entries(path)


def test_a_caption_without_an_image_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ldm"):
        entries(write(tmp_path, {"a.png": A, "a.txt": "x", "z.txt": "y"}))
    assert "1 caption files have no image, z.txt is the first" in caplog.text


def test_captions_are_found_in_linear_time(tmp_path):
    """16 times as many take 16 times as long, or 256 times in a quadratic search; 64 lies between."""

    def seconds(number: int) -> float:
        pictures = [f"{i}.png" for i in range(number)]
        files = {name: tmp_path for i in range(number) for name in (f"{i}.png", f"{i}.txt")}
        begin = process_time()
        assert len(captions(tmp_path, files, pictures)) == number
        return process_time() - begin

    assert min(seconds(16_000) for _ in range(2)) < 64 * min(seconds(1000) for _ in range(5))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_and_circles_end(tmp_path: Path):
    write(tmp_path, {"far/a.png": A, "near/cat/b.png": B})
    (tmp_path / "near" / "dog").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "cat" / "round").symlink_to(tmp_path / "near" / "cat")
    assert [entry[1:] for entry in entries(tmp_path / "near")] == [("cat/b.png", 0), ("dog/a.png", 1)]

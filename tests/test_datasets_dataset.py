"""Set files and folders: what they stand for, and what is said of wrong ones."""

import tomllib
from pathlib import Path

import pytest

from gmodiff.datasets.dataset import open_dataset
from gmodiff.datasets.scene import Dataset
from gmodiff.datasets.static import StaticScene
from gmodiff.datasets.synthetic import MOTIONS, SyntheticScene
from gmodiff.errors import GMODiffError, InputError

SETS = Path(__file__).parents[1] / "benchmarks" / "sets"
SHARED = Path(__file__).parents[2] / "shared" / "data"

SYNTHETIC = """
kind = "synthetic"
data = "."
size = [96, 64]
[[scene]]
name = "b"
picture = "x.hdr"
seed = 1
[[scene]]
name = "a"
picture = "y.hdr"
seed = 2
motion = "leaves"
size = [128, 64]
"""


def put(tmp_path, text):
    path = tmp_path / "set.toml"
    path.write_text(text)
    return path


def test_scenes_come_in_the_order_of_their_names_with_shared_fields(tmp_path):
    opened = open_dataset(put(tmp_path, SYNTHETIC))
    assert opened.name == "set"
    assert [s.name for s in opened.scenes] == ["a", "b"]
    a, b = opened.scenes
    assert isinstance(a, SyntheticScene)
    assert (a.recipe.size, b.recipe.size) == ((128, 64), (96, 64))
    assert a.recipe.motion == "leaves"


def test_scenes_are_drawn_from_the_pictures_of_a_split(tmp_path):
    folder = tmp_path / "hdr"
    folder.mkdir()
    for name in ("a.hdr", "b.hdr", "c.hdr", "notes.txt"):
        (folder / name).touch()
    (folder / "MANIFEST.csv").write_text("file,split\na.hdr,val\nb.hdr,train\nc.hdr,val\n")
    text = 'kind = "synthetic"\ndata = "."\nfolder = "hdr"\nsplit = "val"\ncount = 5\nseed = 7\nmotion = "people"\n'
    scenes = open_dataset(put(tmp_path, text)).scenes
    assert [s.name for s in scenes] == ["a-1", "a-2", "a-3", "c-1", "c-2"]
    assert sorted(s.recipe.seed for s in scenes) == [7, 8, 9, 10, 11]
    assert {s.recipe.motion for s in scenes} == {"people"}
    (folder / "MANIFEST.csv").write_text("name,part\na.hdr,val\n")
    with pytest.raises(InputError, match=r"MANIFEST\.csv with columns file and split"):
        open_dataset(put(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind = ", "not a set file"),
        ('kind = "video"\n', "kind is 'video', expected one of synthetic, real-static"),
        ('kind = "synthetic"\n', "does not say where its pictures are"),
        ('kind = "synthetic"\ndata = "gone"\n', "gone, the pictures of set.toml, is not there"),
        ('kind = "synthetic"\ndata = "."\n', "lists no scenes"),
        ('kind = "real-static"\ndata = "."\ncount = 3\n', "lists no scenes"),
        ('kind = "synthetic"\ndata = "."\nscene = 3\n', "lists no scenes"),
        (SYNTHETIC.replace('"a"', '"b"'), "two scenes are called 'b'"),
        (SYNTHETIC.replace('"a"', '"../b"'), "expected a name that can be a file's"),
        (SYNTHETIC.replace("seed = 2", "speed = 2"), "scene a: unknown key 'speed'"),
        (SYNTHETIC.replace("leaves", "rain"), "scene a: y.hdr: motion is 'rain'"),
        ('kind = "synthetic"\ndata = "."\ncount = 0\n', "count is 0"),
        ('kind = "synthetic"\ndata = "."\ncount = 2\nseed = 1\n', "needs folder"),
        ('kind = "synthetic"\ndata = "."\ncount = 2\nseed = 1\nfolder = "hdr"\n', "hdr is not there"),
    ],
)
def test_wrong_set_files_are_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(GMODiffError, match=said) as error:
        open_dataset(put(tmp_path, text))
    assert "\n" not in str(error.value)


def test_no_file_an_empty_folder_and_data_beside_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not there: expected a set file"):
        open_dataset(tmp_path / "nothing.toml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scenes: expected folders"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(InputError, match="--data is for set files"):
        open_dataset(tmp_path / "empty", tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match="not a set file"):
        open_dataset(tmp_path / "photo.jpg")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
@pytest.mark.parametrize(("name", "count"), [("synthetic-val", 24), ("synthetic-hard", 12), ("real-static", 14)])
def test_the_committed_sets_open_and_their_pictures_are_there(name, count):
    opened = open_dataset(SETS / f"{name}.toml")
    assert len(opened.scenes) == count
    assert len({s.fingerprint for s in opened.scenes}) == count
    assert opened.about


def test_the_committed_sets_cover_what_they_promise():
    val = tomllib.loads((SETS / "synthetic-val.toml").read_text())["scene"]
    assert {s["motion"] for s in val} == set(MOTIONS)
    assert {len(s["stops"]) for s in val} == {3, 5, 7, 9}
    assert sum(s["picture"].startswith("photos/") for s in val) == 8
    hard = tomllib.loads((SETS / "synthetic-hard.toml").read_text())["scene"]
    # Whatever is measured on one set must not be trained on through the other.
    assert {s["picture"] for s in hard} <= {s["picture"] for s in val}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
def test_a_real_set_names_photos_that_exist():
    opened = open_dataset(SETS / "real-static.toml")
    assert isinstance(opened, Dataset)
    for scene in opened.scenes:
        assert isinstance(scene, StaticScene)
        folder = SHARED / scene.recipe.folder
        assert all((folder / f).is_file() for f in scene.recipe.frames)

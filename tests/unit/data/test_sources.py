"""Data is found, generated, downloaded, or reported missing."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import socket
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpeval.config import DatasetConfig
from dpeval.data import Source, prepare, used
from dpeval.data.sources import imagenette, synthetic
from dpeval.data.sources.imagenette import Archive, download, extract, obtain
from dpeval.errors import ConfigError, DataError
from tests.unit.data.conftest import CONFIG, silent

FolderOf = Callable[..., DatasetConfig]

# --- the stand-in ------------------------------------------------------------------------------


def test_the_stand_in_has_imagenettes_layout(source: Source) -> None:
    assert len(source.train_files) == 40
    classes = sorted({name.split("/")[1] for name in source.train_files})
    assert classes == list(synthetic.WNIDS) == sorted(synthetic.WNIDS)
    sizes = [Image.open(Path(source.root) / name).size for name in source.train_files]
    assert {min(size) for size in sizes} == {160}
    assert len(set(sizes)) > 2
    assert set(source.val_labels) == set(range(10))


def test_the_stand_in_is_the_same_everywhere() -> None:
    def digest(index: int) -> str:
        pixels = synthetic.make_image(3, 160, np.random.default_rng([1, index]))
        return hashlib.sha256(pixels.tobytes()).hexdigest()

    assert digest(3) == digest(3)
    assert digest(3) != digest(13)


@pytest.mark.parametrize(("short_px", "published_bytes"), [(160, 7_391), (375, 116_258)])
def test_stand_in_files_are_as_large_as_published_ones(short_px: int, published_bytes: int) -> None:
    import simplejpeg

    sizes = [
        len(
            simplejpeg.encode_jpeg(
                synthetic.make_image(number % 10, short_px, np.random.default_rng(number)),
                quality=synthetic.JPEG_QUALITY[short_px],
                colorsubsampling="420",
            )
        )
        for number in range(40)
    ]
    assert np.mean(sizes) == pytest.approx(published_bytes, rel=0.15)


def test_stand_in_images_have_the_spectra_of_photographs() -> None:
    """Amplitude falls as about 1/f: a slope near -1 in the logarithms (Field 1987)."""
    slopes = []
    for number in range(10):
        pixels = synthetic.make_image(number, 160, np.random.default_rng(number))[:160, :160]
        grey = pixels.mean(axis=-1)
        amplitude = np.abs(np.fft.fft2(grey - grey.mean()))
        rows, columns = np.meshgrid(
            *[np.fft.fftfreq(side) * 160 for side in grey.shape], indexing="ij"
        )
        radius = np.hypot(rows, columns)
        bands = [(low, low * 2) for low in (2, 4, 8, 16)]
        means = [amplitude[(radius >= low) & (radius < high)].mean() for low, high in bands]
        slopes.append(np.polyfit(np.log([low for low, _ in bands]), np.log(means), 1)[0])
    assert -1.4 < float(np.mean(slopes)) < -0.7


def test_stand_in_classes_differ_in_ways_that_crops_and_mirroring_keep() -> None:
    """By texture direction and hue alone, a nearest mean tells every class on small crops."""

    def features(number: int) -> list[float]:
        generator = np.random.default_rng([2, number])
        pixels = synthetic.make_image(number % 10, 160, generator)[20:116, 30:126, ::1]
        pixels = pixels[:, ::-1].astype(float)
        luminance = pixels.mean(axis=-1)
        down, across = (np.abs(np.diff(luminance, axis=axis)).mean() for axis in (0, 1))
        red, green, blue = pixels.mean(axis=(0, 1))
        return [10 * np.log(down / across), (red - green) / 10, (blue - green) / 10]

    known = np.array([features(number) for number in range(100)])
    asked = np.array([features(number) for number in range(100, 200)])
    means = np.array([known[label::10].mean(axis=0) for label in range(10)])
    nearest = ((asked[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == np.arange(100) % 10).mean() > 0.8


def test_a_second_preparation_generates_nothing(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(source.root).parent
    monkeypatch.setattr(synthetic, "generate", None)
    assert prepare(dataclasses.replace(CONFIG, root=str(root), loader="jpeg"), silent) == source


# --- a user's own ------------------------------------------------------------------------------


def test_a_users_own_folder_with_spaces_and_other_letters(folder_of: FolderOf) -> None:
    config = folder_of("meine Bilder ✓", **{"größe eins": 3, "zwei": 2})
    made = prepare(config, silent)
    assert made.train_labels == [0, 0, 0, 1, 1]
    assert made.cache is not None


def test_an_empty_class_is_named(folder_of: FolderOf) -> None:
    with pytest.raises(DataError, match=r"own/train/hollow contains no images"):
        prepare(folder_of(full=2, hollow=0), silent)


def test_images_below_a_class_belong_to_it_and_what_is_left_out_is_counted(
    folder_of: FolderOf,
) -> None:
    config = folder_of(cat=2, dog=2)
    train = Path(str(config.root)) / "train"
    for below in ("cat/2024/june", ".ipynb_checkpoints", "dog/.thumbs", "__MACOSX/cat"):
        (train / below).mkdir(parents=True)
        shutil.copy(train / "cat" / "0.jpg", train / below / "a.JPEG")
    (train / "dog" / "._0.jpg").write_bytes(b"resource fork")
    (train / "dog" / "labels.txt").write_text("dog")
    (train / "dog" / "gone.jpg").symlink_to("nowhere.jpg")
    (train / "dog" / "self.jpg").symlink_to("self.jpg")
    os.mkfifo(train / "dog" / "pipe.jpg")
    (train / "dog" / "again").symlink_to(train / "dog")
    (train / "README").write_text("mine")
    lines: list[str] = []
    source = prepare(dataclasses.replace(config, loader="jpeg"), lines.append)
    assert source.train_files == [
        "train/cat/0.jpg", "train/cat/1.jpg", "train/cat/2024/june/a.JPEG",
        "train/dog/0.jpg", "train/dog/1.jpg",
    ]  # fmt: skip
    assert source.train_labels == [0, 0, 0, 1, 1]
    assert source.left_out == {
        "folder .ipynb_checkpoints": 1, "folder __MACOSX": 1,
        "no ending beside the class folders": 1,
        "folder .thumbs": 1, "hidden file": 1, ".txt": 1, "broken link or no file": 3,
        "link to a folder above it": 1,
    }  # fmt: skip
    assert used(source, config).left_out == source.left_out
    (line,) = lines
    assert "5 images to train on and 4 to validate, 2 classes; left out: 1 folder" in line


def test_a_class_without_images_lists_the_endings(folder_of: FolderOf) -> None:
    config = folder_of(full=1, odd=0)
    (Path(str(config.root)) / "train" / "odd" / "a.gif").write_bytes(b"GIF")
    with pytest.raises(DataError, match=r"no images but 1 \.gif; images end in .*\.tif"):
        prepare(config, silent)


def test_classes_beside_train_are_told_where_to_go(folder_of: FolderOf) -> None:
    config = folder_of(a=1, b=1)
    root = Path(str(config.root))
    shutil.rmtree(root / "val")
    (root / "train").rename(root.with_name("all"))
    root.rmdir()
    root.with_name("all").rename(root)
    with pytest.raises(DataError, match=r"holds a/, b/: if these are classes, move them there"):
        prepare(config, silent)


def test_classes_that_train_or_val_lacks_are_named(folder_of: FolderOf) -> None:
    config = folder_of(a=1, b=1)
    shutil.rmtree(Path(str(config.root)) / "val" / "b")
    with pytest.raises(DataError, match=r"in only one of them: b"):
        prepare(config, silent)


def test_a_wrong_number_of_classes_says_the_right_one(folder_of: FolderOf) -> None:
    config = dataclasses.replace(folder_of(a=2, b=2, c=2), num_classes=10)
    with pytest.raises(DataError, match=r"has 3 classes, .* set dataset\.num_classes=3"):
        prepare(config, silent)


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, name="image_folder", _target_="dpeval.data.image_folder", root=str(tmp_path / "no")
    )
    with pytest.raises(DataError, match=r"/no does not exist; give the folder with train/<class>"):
        prepare(config, silent)


def refused_root(config: DatasetConfig, root: str) -> str:
    with pytest.raises(DataError) as caught:
        prepare(dataclasses.replace(config, root=root), silent)
    return str(caught.value)


def test_a_root_that_is_no_folder_says_what_to_give(folder_of: FolderOf, tmp_path: Path) -> None:
    config = folder_of(a=1, b=1)
    (tmp_path / "images.zip").touch()
    told = refused_root(config, str(tmp_path / "images.zip"))
    assert "images.zip is a file; unpack it first; give a folder" in told
    told = refused_root(config, "$PICS/ants")
    assert "contains $PICS as text" in told
    assert "${oc.env:PICS}/ants" in told


def test_a_root_one_level_off_names_the_right_one(folder_of: FolderOf) -> None:
    config = folder_of(a=1, b=1)
    root = Path(str(config.root))
    assert f"set dataset.root={root}" in refused_root(config, str(root.parent))
    assert f"give its parent: dataset.root={root}" in refused_root(config, str(root / "train"))
    (root / "train").rename(root / "Training")
    assert f"rename {root / 'Training'} to train" in refused_root(config, str(root))


OWN = "tests.unit.data.parts"


def test_a_dataset_of_ones_own_takes_its_own_arguments(store: Path) -> None:
    config = dataclasses.replace(
        CONFIG,
        name="mine",
        _target_=f"{OWN}.files_named",
        args={"names": ["a.jpg", "b.jpg"]},
        loader="jpeg",
    )
    source = prepare(config, silent)
    assert source.train_files == ["a.jpg", "b.jpg"]
    assert (source.requested, source.used, source.root) == ("mine", "mine", str(store))


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        ("files_named", {}, "does not accept dataset.args={}: missing a required"),
        (
            "files_named",
            {"nmaes": []},
            "called as files_named(config, root, report, **dataset.args)",
        ),
        ("a_folder", {}, "returned a PosixPath; it must return a dpeval.data.Source"),
        ("unlabelled", {}, "1 train_files and 0 train_labels; every file needs a label"),
        ("absent", {}, "module 'tests.unit.data.parts' has no 'absent'"),
    ],
)
def test_a_dataset_that_is_none_is_one_line(
    target: str, args: dict[str, Any], message: str
) -> None:
    config = dataclasses.replace(CONFIG, _target_=f"{OWN}.{target}", args=args, loader="jpeg")
    with pytest.raises(ConfigError) as caught:
        prepare(config, silent)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder in which this process may read and not write, even where it is root's."""
    folder = Path(tempfile.mkdtemp(prefix="dpeval-read-only-"))
    yield folder
    os.seteuid(os.getuid())
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_data_in_a_read_only_folder_are_used_where_nothing_must_be_made(
    as_nobody: Path, source: Source, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source.root, as_nobody / Path(source.root).name)
    writable = as_nobody / "store"
    writable.mkdir()
    writable.chmod(0o777)
    monkeypatch.setenv("DPEVAL_DATA", str(writable))
    as_nobody.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)
    config = dataclasses.replace(CONFIG, root=str(as_nobody))
    made = prepare(config, silent)
    assert made.cache is not None
    assert Path(made.cache).is_relative_to(writable)
    larger = dataclasses.replace(config, train_images=50)
    with pytest.raises(
        DataError, match=r"dpeval-read-only-.*Permission denied; choose a writable folder"
    ):
        prepare(larger, silent)


# --- downloads ---------------------------------------------------------------------------------


def packed(folder: str = "imagenette2-160", *, evil: tarfile.TarInfo | None = None) -> bytes:
    """An archive in Imagenette's layout with one image per class and split."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        if evil is not None:
            tar.addfile(evil, io.BytesIO(b"x" * evil.size))
        for split in ("train", "val"):
            for number, wnid in enumerate(synthetic.WNIDS):
                image = io.BytesIO()
                noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
                Image.fromarray(noise).save(image, "JPEG")
                member = tarfile.TarInfo(f"{folder}/{split}/{wnid}/{wnid}_0.JPEG")
                member.size = len(image.getvalue())
                tar.addfile(member, io.BytesIO(image.getvalue()))
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves a folder on loopback, whole or from where a download was cut off."""

    daemon_threads = True
    ranges: list[str]


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        if asked is None:
            return super().do_GET()
        assert isinstance(self.server, Server)
        self.server.ranges.append(asked)
        content = Path(self.translate_path(self.path)).read_bytes()
        begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin:])
        return None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served")))
    server.ranges = []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """An archive that is served, and what ``dataset=imagenette_160`` downloads."""
    content = packed()
    (tmp_path / "served" / "imagenette2-160.tgz").write_bytes(content)
    one = Archive(
        f"http://127.0.0.1:{server.server_address[1]}/imagenette2-160.tgz",
        len(content),
        hashlib.md5(content).hexdigest(),
        train_images=10,
        val_images=10,
    )
    monkeypatch.setitem(imagenette.ARCHIVES, "160px", one)
    return one


IMAGENETTE = dataclasses.replace(
    CONFIG, name="imagenette_160", _target_="dpeval.data.imagenette", loader="jpeg"
)


def test_an_archive_is_fetched_verified_and_extracted_once(published: Archive) -> None:
    said: list[str] = []
    made = prepare(IMAGENETTE, said.append)
    assert (made.requested, made.used, made.note) == ("imagenette_160", "imagenette_160", "")
    assert len(made.train_files) == len(made.val_files) == 10
    assert any("downloading" in line for line in said)
    said.clear()
    assert prepare(IMAGENETTE, said.append) == made
    assert said == []


def test_a_broken_archive_is_fetched_again_and_a_half_folder_extracted_again(
    published: Archive, store: Path, tmp_path: Path
) -> None:
    whole = (tmp_path / "served" / "imagenette2-160.tgz").read_bytes()
    half = store / "imagenette2-160" / "train" / synthetic.WNIDS[0]
    half.mkdir(parents=True)
    (half / "mine.JPEG").write_bytes(b"somebody's own")
    (store / "imagenette2-160.tgz").write_bytes(whole[:-7])
    said: list[str] = []
    made = prepare(IMAGENETTE, said.append)
    assert made.used == "imagenette_160"
    assert any("damaged or incomplete" in line for line in said)
    assert any("is incomplete; moving it to" in line for line in said)
    # What lay there is moved aside, never deleted.
    assert len(list(store.glob("imagenette2-160.incomplete-*/train/*/mine.JPEG"))) == 1


def test_a_folder_that_somebody_else_extracted_is_taken_as_it_is(
    published: Archive, store: Path, tmp_path: Path
) -> None:
    store.mkdir()
    with tarfile.open(tmp_path / "served" / "imagenette2-160.tgz") as tar:
        tar.extractall(store)
    said: list[str] = []
    assert len(prepare(IMAGENETTE, said.append).train_files) == 10
    assert said == []


def test_an_interrupted_download_continues_where_it_stopped(
    published: Archive, server: Server, store: Path, tmp_path: Path
) -> None:
    store.mkdir()
    whole = (tmp_path / "served" / "imagenette2-160.tgz").read_bytes()
    (store / "imagenette2-160.part").write_bytes(whole[:1000])
    assert prepare(IMAGENETTE, silent).used == "imagenette_160"
    assert server.ranges == ["bytes=1000-"]


def test_what_is_not_the_published_archive_is_refused(
    published: Archive, tmp_path: Path, store: Path
) -> None:
    (tmp_path / "served" / "imagenette2-160.tgz").write_bytes(b"<html>please log in</html>" * 999)
    store.mkdir()
    with pytest.raises(DataError, match="not the published archive"):
        download(published, store / "imagenette2-160.tgz", silent, 5)
    assert list(store.iterdir()) == []


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    member.size = 4 if kind == tarfile.REGTYPE else 0
    return member


@pytest.mark.parametrize(
    "evil",
    [
        _member("../../outside.txt"),
        _member("imagenette2-160/../../outside.txt"),
        _member("imagenette2-160/link", tarfile.SYMTYPE, "/etc"),
        _member("imagenette2-160/link", tarfile.SYMTYPE, "../../.."),
        _member("imagenette2-160/hard", tarfile.LNKTYPE, "/etc/passwd"),
        _member("imagenette2-160/device", tarfile.CHRTYPE),
    ],
    ids=lambda member: f"{member.name}-{member.linkname}",
)
def test_no_member_leaves_its_folder(
    published: Archive, store: Path, evil: tarfile.TarInfo
) -> None:
    store.mkdir()
    path = store / "imagenette2-160.tgz"
    path.write_bytes(packed(evil=evil))
    with pytest.raises(DataError, match="cannot be extracted"):
        extract(path, published, store / "imagenette2-160", silent)
    assert [entry.name for entry in store.iterdir()] == ["imagenette2-160.tgz"]
    assert not list(store.parent.glob("**/outside.txt"))


def test_an_archive_that_lacks_images_is_refused(published: Archive, store: Path) -> None:
    store.mkdir()
    path = store / "imagenette2-160.tgz"
    path.write_bytes(packed("other"))
    with pytest.raises(DataError, match="lacks some of the 20 images"):
        extract(path, published, store / "imagenette2-160", silent)
    assert [entry.name for entry in store.iterdir()] == ["imagenette2-160.tgz"]


@pytest.fixture(params=["refused", "silent", "half", "no such host"])
def unreachable(request: pytest.FixtureRequest) -> Iterator[str]:
    """Addresses from which no archive comes, each in its own way."""
    if request.param == "no such host":
        yield "http://host.invalid"
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param != "refused":
            listener.listen()
        if request.param == "half":
            threading.Thread(target=_answer_half, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _answer_half(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nabc")


def test_without_a_network_the_stand_in_is_used_or_the_run_stops(
    unreachable: str, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    nowhere = Archive(f"{unreachable}/imagenette2-160.tgz", 5000, "")
    monkeypatch.setitem(imagenette.ARCHIVES, "160px", nowhere)
    config = dataclasses.replace(IMAGENETTE, download_timeout_s=1.0)
    said: list[str] = []
    with pytest.raises(DataError, match=r"cannot be downloaded|not the published"):
        prepare(dataclasses.replace(config, on_missing="error"), silent)
    made = prepare(config, said.append)
    assert (made.requested, made.used) == ("imagenette_160", "imagenette_like")
    assert any("USING STAND-IN" in line for line in said)
    assert "generated images stand in" in made.note


def test_a_network_that_was_absent_is_not_waited_for_once_per_run(
    monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    nowhere = Archive("http://127.0.0.1:9/imagenette2-160.tgz", 5000, "")
    monkeypatch.setitem(imagenette.ARCHIVES, "160px", nowhere)
    for message in ("cannot be downloaded", "could not be reached less than 10 minutes ago"):
        store.mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            obtain(nowhere, store, silent, 1.0)

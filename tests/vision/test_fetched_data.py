"""Data and packages that are fetched: from a mirror on loopback, in parts, damaged, or not at all."""

import http.server
import io
import os
import random
import subprocess
import tarfile
import threading
import venv
import zipfile
from hashlib import md5
from pathlib import Path

import pytest

from roclab.core.exceptions import DataError
from roclab.core.fetch import fetch, fetch_archives
from roclab.vision.data.dataset import load_data
from roclab.vision.data.sources import get_pets
from tests.vision.conftest import picture

ROOT = Path(__file__).parents[2]


def pets_archives(folder: Path) -> tuple[tuple[str, str], ...]:
    """Two small archives laid out as the real ones; their names with MD5."""
    folder.mkdir()
    lines = {"trainval": [], "test": []}
    found = []
    with tarfile.open(folder / "images.tar.gz", "w:gz") as tar:
        for c, breed in enumerate(("Bengal", "pug"), start=1):
            for i in range(8):
                buffer = io.BytesIO()
                picture(10 * c + i).save(buffer, "JPEG")
                add(tar, f"images/{breed}_{i}.jpg", buffer.getvalue())
                lines["test" if i > 5 else "trainval"].append(f"{breed}_{i} {c} {c} 1")
        add(tar, "images/noise.bin", random.Random(0).randbytes(300_000))  # so that a cut leaves something to resume
    with tarfile.open(folder / "annotations.tar.gz", "w:gz") as tar:
        for part, rows in lines.items():
            add(tar, f"annotations/{part}.txt", "\n".join(rows).encode())
    for name in ("images.tar.gz", "annotations.tar.gz"):
        found.append((f"http://example.invalid/pets/{name}", md5((folder / name).read_bytes()).hexdigest()))
    return tuple(found)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def server(tmp_path: Path):
    """Serves tmp_path/served on loopback, with byte ranges; `cut` bytes after which it hangs up, once."""

    class Handler(http.server.BaseHTTPRequestHandler):
        cut: int | None = None
        ranges = True
        asked: list[str] = []  # noqa: RUF012

        def do_GET(self) -> None:
            path = tmp_path / "served" / self.path.split("/", 2)[2]
            if not path.is_file():
                self.send_error(404, "not here")
                return
            content = path.read_bytes()
            wanted = self.headers.get("Range")
            type(self).asked.append(f"{path.name} {wanted}")
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
            if start >= len(content):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop, type(self).cut = self.cut, None
            self.wfile.write(content[start : start + stop] if stop else content[start:])

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        Handler.address = f"http://127.0.0.1:{httpd.server_port}/mirror"
        yield Handler
        httpd.shutdown()


def test_download_from_a_mirror_resume_and_use(tmp_path: Path, server):
    resources = pets_archives(tmp_path / "served")
    folder = tmp_path / "data" / "oxford-iiit-pet"
    server.cut = 100_000
    with pytest.raises(DataError, match=r"ended after 100000 of \d+ bytes.*100000 bytes are kept"):
        fetch_archives(folder, resources, server.address)
    assert not folder.exists()
    fetch_archives(folder, resources, server.address + "/")
    assert server.asked == ["images.tar.gz None", "images.tar.gz bytes=100000-", "annotations.tar.gz None"]
    assert sorted(os.listdir(tmp_path / "data")) == ["oxford-iiit-pet"]
    dataset = load_data("pets", tmp_path / "data")
    assert dataset.species == {"Bengal": "cat", "Pug": "dog"}
    assert dataset.counts() == {"train": 10, "val": 2, "test": 4}


def test_a_server_without_ranges_is_read_from_the_start(tmp_path: Path, server):
    resources = pets_archives(tmp_path / "served")
    server.cut, server.ranges = 100_000, False
    for _ in range(2):
        try:
            fetch(f"{server.address}/images.tar.gz", tmp_path / "images.tar.gz", resources[0][1])
        except DataError:
            continue
    assert md5((tmp_path / "images.tar.gz").read_bytes()).hexdigest() == resources[0][1]
    assert not list(tmp_path.glob("*.part"))


def test_a_part_that_is_already_whole_is_finished(tmp_path: Path, server):
    resources = pets_archives(tmp_path / "served")
    (tmp_path / "images.tar.gz.part").write_bytes((tmp_path / "served" / "images.tar.gz").read_bytes())
    fetch(f"{server.address}/images.tar.gz", tmp_path / "images.tar.gz", resources[0][1])
    assert md5((tmp_path / "images.tar.gz").read_bytes()).hexdigest() == resources[0][1]


def test_the_wrong_bytes_are_refused(tmp_path: Path, server):
    pets_archives(tmp_path / "served")
    with pytest.raises(DataError, match="MD5"):
        fetch(f"{server.address}/images.tar.gz", tmp_path / "images.tar.gz", "0" * 32)
    assert not list(tmp_path.glob("images*"))


def test_what_cannot_be_fetched_says_how_to_do_it_by_hand(tmp_path: Path, server):
    (tmp_path / "served").mkdir()
    with pytest.raises(DataError, match=r"404 not here: fetch it by hand to .*--mirror"):
        get_pets(tmp_path / "data", server.address)
    with pytest.raises(DataError, match=r"cannot be fetched.*by hand"):
        get_pets(tmp_path / "data", "http://127.0.0.1:9/nobody")


def test_an_archive_that_climbs_out_is_refused(tmp_path: Path, server):
    (tmp_path / "served").mkdir()
    with tarfile.open(tmp_path / "served" / "bad.tar.gz", "w:gz") as tar:
        add(tar, "../outside.txt", b"x")
    digest = md5((tmp_path / "served" / "bad.tar.gz").read_bytes()).hexdigest()
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch_archives(tmp_path / "data" / "pets", (("http://example.invalid/bad.tar.gz", digest),), server.address)
    assert not (tmp_path / "data" / "outside.txt").exists()
    assert not (tmp_path / "data" / "pets").exists()


def test_a_copy_on_disk_is_used_and_never_written_to(shared_data: Path):
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in (shared_data / "pets37").rglob("*")}

    before = state()
    load_data("pets", shared_data / "pets37", mirror="http://127.0.0.1:9/nobody")
    assert state() == before


def test_a_pets_copy_that_is_not_whole_is_named(tmp_path: Path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations" / "trainval.txt").write_text("Bengal_1 1 1 1\n")
    with pytest.raises(DataError, match=r"test.txt is missing"):
        load_data("pets", tmp_path)
    (tmp_path / "annotations" / "test.txt").write_text("Bengal_2 one 1 1\n")
    with pytest.raises(DataError, match=r"test.txt, line 1"):
        load_data("pets", tmp_path)


def test_a_missing_package_is_installed_by_name(tmp_path: Path):
    """pip really runs, in an environment of its own, and finds the package in a folder instead of the network."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = "elpv_dataset-1.0.0.post1.dist-info"
    with zipfile.ZipFile(wheels / "elpv_dataset-1.0.0.post1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("elpv_dataset/__init__.py", "raise SystemExit('its code must not run')")
        wheel.writestr("elpv_dataset/data/labels.csv", "images/a.png 1.0 mono\n")
        needs = "Requires-Dist: numpy==0.0.1\n"  # cannot be had: --no-deps must hold
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: elpv-dataset\nVersion: 1.0.0.post1\n{needs}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    venv.create(tmp_path / "env", with_pip=True)
    code = (
        "import sys, types; package = types.ModuleType('roclab'); package.__path__ = [sys.argv[1] + '/roclab']\n"
        "sys.modules['roclab'] = package\n"
        "from roclab.core import fetch, log; log.show_messages()\n"
        "found = fetch.package_folder('elpv-dataset==1.0.0.post1', 'elpv_dataset')\n"
        "print((found / 'data' / 'labels.csv').read_text())"
    )
    python = tmp_path / "env" / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))} | {"PIP_NO_INDEX": "1"}
    nowhere = subprocess.run([python, "-c", code, str(ROOT)], env=env, capture_output=True, text=True, check=False)
    assert "pip could not install elpv-dataset" in nowhere.stderr
    env["PIP_FIND_LINKS"] = str(wheels)
    done = subprocess.run([python, "-c", code, str(ROOT)], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "images/a.png 1.0 mono"
    assert "installing elpv-dataset==1.0.0.post1: python -m pip install --no-deps elpv-dataset==1." in done.stderr

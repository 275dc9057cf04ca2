"""Finding, downloading and reading weights, against a real HTTP server on this machine and real damaged files."""

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import threading
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from iqguide.models import ModelSpec, WeightsError, cache, download, is_cached
from iqguide.models.cache import cache_dir, default_path, find_weights, is_offline, mirrored, verify
from iqguide.models.download import download as fetch
from iqguide.models.weights import read_weights

BODY = b"PK\x03\x04" + (bytes(range(256)) * 4096)[4:]  # 1 MiB, begins as a file of torch.save
SHA256 = hashlib.sha256(BODY).hexdigest()


# An older client leaves the socket of a connection that broke to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Server(ThreadingHTTPServer):
    """Serves one body with Range, If-Range and ETag, with faults on demand, and keeps what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.requests, self.heads = BODY, '"first"', [], []
        self.cut_at, self.cuts = None, 0  # close the connection at this byte, so many times
        self.status = None  # answer this instead
        self.status_after = None  # the same after a cut
        self.ranges = True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.pt"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        """What a hub says of a file."""
        server = self.server
        server.heads.append(dict(self.headers))
        if server.status or self.path.startswith("/missing"):
            return self.send_error(server.status or 404)
        self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append({name.title(): value for name, value in self.headers.items()})
        if server.status or self.path.startswith("/missing"):
            return self.send_error(server.status or 404)
        start = 0
        if asked and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = len(server.body)
        if server.cuts:
            server.cuts, end = server.cuts - 1, server.cut_at
            server.status = server.status_after
        self.wfile.write(server.body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """An empty cache, downloads allowed, no waiting between attempts."""
    for name in ("IQGUIDE_OFFLINE", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IQGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # the file of these tests is small
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def spec(server):
    return ModelSpec(name="test", summary="", licence="CC TEST 1.0", filename="file.pt", url=server.url, megabytes=1)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def no_server(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(download, "download", refuse)


# Download


def test_first_use_downloads_records_and_shows_the_licence_once(spec, server, cache_folder, caplog, capfd):
    assert not is_cached(spec)
    with caplog.at_level(logging.WARNING):
        path = find_weights(spec)
    assert path == cache_folder / "file.pt"
    assert path.read_bytes() == BODY
    assert is_cached(spec)
    assert names(cache_folder) == ["file.pt", "file.pt.json"]
    record = json.loads((cache_folder / "file.pt.json").read_text())
    assert (record["sha256"], record["url"], record["licence"]) == (SHA256, server.url, "CC TEST 1.0")
    assert [record.getMessage() for record in caplog.records if "CC TEST 1.0" in record.getMessage()] != []
    assert capfd.readouterr().out == ""
    caplog.clear()
    assert find_weights(spec) == path
    assert len(server.requests) == 1
    assert caplog.records == []


def test_known_checksum(spec, server, cache_folder):
    assert find_weights(replace(spec, sha256=SHA256)).read_bytes() == BODY


def test_wrong_checksum_keeps_nothing(spec, cache_folder):
    with pytest.raises(WeightsError, match=f"has sha256 {SHA256}; expected {'0' * 64}.*nothing was kept"):
        find_weights(replace(spec, sha256="0" * 64))
    assert names(cache_folder) == []


PAGES = (b"<!DOCTYPE html><html><body>Sign in to go on</body></html>", b'{"error": "not found"}', b"{{{{{{{{{", b"PK")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_instead_of_weights_keeps_nothing(spec, server, cache_folder, page):
    server.body = page
    with pytest.raises(WeightsError, match=r"file\.pt sends no weights.*By hand: fetch http"):
        find_weights(spec)
    assert names(cache_folder) == []
    server.body = BODY
    assert find_weights(spec).read_bytes() == BODY


def test_a_page_put_there_by_hand_is_not_recorded(spec, cache_folder):
    cache_folder.mkdir()
    (cache_folder / "file.pt").write_bytes(PAGES[0])
    with pytest.raises(WeightsError, match=r"file\.pt holds no weights.*delete it to download it again"):
        find_weights(spec)
    assert names(cache_folder) == ["file.pt"]


@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch before 1.6"])
def test_real_weights_files_are_taken(spec, server, tmp_path, kind):
    state, path = {"a": torch.ones(2)}, tmp_path / "real"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    server.body = path.read_bytes()
    assert find_weights(spec).read_bytes() == server.body


def test_a_cut_connection_is_continued(spec, server, cache_folder):
    server.cut_at, server.cuts = 300_000, 1
    assert find_weights(spec).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_connection_that_is_always_cut(spec, server, cache_folder):
    server.cut_at, server.cuts = 0, 99
    with pytest.raises(WeightsError, match=r"cannot download http://127.*put it at .*file\.pt"):
        find_weights(spec)
    assert not is_cached(spec)
    server.cuts = 0
    assert find_weights(spec).read_bytes() == BODY
    assert names(cache_folder) == ["file.pt", "file.pt.json"]


def test_a_server_without_ranges(server, tmp_path):
    server.ranges, server.cut_at, server.cuts = False, 1000, 1
    fetch(server.url, tmp_path / "file.pt", sha256=SHA256)
    assert (tmp_path / "file.pt").read_bytes() == BODY


def test_what_an_interrupted_download_left_is_not_used(server, tmp_path):
    (tmp_path / "file.pt.part").mkdir()
    (tmp_path / "file.pt.part" / "file").write_bytes(b"old" * 1000)
    fetch(server.url, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == BODY
    assert names(tmp_path) == ["file.pt"]


def test_the_first_digits_of_a_checksum(server, tmp_path):
    fetch(server.url, tmp_path / "file.pt", sha256=SHA256[:8])
    with pytest.raises(WeightsError, match=f"has sha256 {SHA256}; expected 12345678: damaged or replaced"):
        fetch(server.url, tmp_path / "other.pt", sha256="12345678")
    assert names(tmp_path) == ["file.pt"]


def test_an_interrupted_download_goes_on_where_the_server_states_the_checksum(server, tmp_path):
    server.etag = f'"{SHA256}"'
    server.cut_at, server.cuts = 300_000, 1
    server.status_after = 503  # and nothing more after the cut
    with pytest.raises(WeightsError, match=r"file\.pt answers 503"):
        fetch(server.url, tmp_path / "file.pt")
    (part,) = (tmp_path / "file.pt.part").iterdir()
    assert 0 < part.stat().st_size <= 300_000
    size = part.stat().st_size
    server.status = None
    server.requests.clear()
    fetch(server.url, tmp_path / "file.pt")
    assert server.requests[0]["Range"] == f"bytes={size}-"
    assert (tmp_path / "file.pt").read_bytes() == BODY
    assert names(tmp_path) == ["file.pt"]


@pytest.mark.parametrize("left", [BODY, BODY + b"more", b"other" * 1000])
def test_what_was_left_is_held_to_the_stated_checksum(server, tmp_path, left):
    server.etag = f'"{SHA256}"'
    folder = tmp_path / "file.pt.part"
    folder.mkdir()
    (folder / SHA256).write_bytes(left)
    if left != BODY:
        with pytest.raises(WeightsError, match=f"expected {SHA256}: damaged or replaced; nothing was kept"):
            fetch(server.url, tmp_path / "file.pt")
    fetch(server.url, tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == BODY


def test_no_token_is_sent(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(server.url, tmp_path / "file.pt")
    assert not any("hf_secret" in value for headers in server.requests + server.heads for value in headers.values())


def test_the_copy_is_taken_where_the_first_address_fails(spec, server, cache_folder):
    both = replace(spec, url=f"http://127.0.0.1:{server.server_port}/missing", copy_url=server.url)
    assert find_weights(both).read_bytes() == BODY
    with pytest.raises(WeightsError, match=r"/missing answers 404\. .*also answers 404\. By hand: fetch"):
        find_weights(replace(both, filename="other.pt", copy_url=f"{both.url}/also"))


def test_answers_of_the_server(spec, server, cache_folder):
    server.status = 404
    with pytest.raises(WeightsError, match=r"answers 404\..*fetch http.*CC TEST 1\.0.*file\.pt"):
        find_weights(spec)
    assert len(server.heads) == 1
    server.status = 503
    with pytest.raises(WeightsError, match="answers 503"):
        find_weights(spec)
    assert names(cache_folder) == []


def test_no_server(cache_folder, server):
    url = server.url
    server.shutdown()  # else its thread may still take the connection
    server.server_close()
    with pytest.raises(WeightsError, match=r"cannot download http://127\.0\.0\.1.*refused"):
        fetch(url, cache_folder / "file.pt")


def test_many_callers_download_once(spec, server):
    threads = [threading.Thread(target=find_weights, args=(spec,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert default_path(spec).read_bytes() == BODY
    assert len(server.requests) == 1


def test_not_enough_space_is_seen_before_the_first_byte(spec, cache_folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(WeightsError, match=r"0 MB free and the download needs 1 MB.*IQGUIDE_CACHE"):
        find_weights(spec)
    assert names(cache_folder) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_disk_that_fills_up(spec, cache_folder):
    (cache_folder / "file.pt.part").mkdir(parents=True)
    (cache_folder / "file.pt.part" / "file").symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"cannot write .*file\.pt \(No space left"):
        find_weights(spec)
    assert not is_cached(spec)


def test_a_cache_that_cannot_be_written(spec, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IQGUIDE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match=r"cannot write .*set IQGUIDE_CACHE to another folder"):
        find_weights(spec)


# The cache_folder


@pytest.mark.parametrize("name", ["IQGUIDE_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline(spec, cache_folder, monkeypatch, name, value):
    no_server(monkeypatch)
    monkeypatch.setenv(name, value)
    expected = (
        rf"downloads are off.*fetch {re.escape(spec.url)} \(licence: CC TEST 1\.0\).*{re.escape(str(cache_folder))}"
    )
    with pytest.raises(WeightsError, match=expected):
        find_weights(spec)
    cache_folder.mkdir()
    (cache_folder / "file.pt").write_bytes(BODY)  # by hand, as the message says
    assert find_weights(spec) == cache_folder / "file.pt"


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_not_offline(monkeypatch, value):
    monkeypatch.setenv("IQGUIDE_OFFLINE", value)
    assert not is_offline()


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("IQGUIDE_CACHE", "~/here")
    assert cache_dir() == Path.home() / "here"
    monkeypatch.delenv("IQGUIDE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "iqguide"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "iqguide"


def test_mirror_of_the_hub(monkeypatch, spec):
    hub = replace(spec, url="https://huggingface.co/a/b/resolve/main/c.safetensors")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert mirrored(hub.url) == "https://mirror.example/a/b/resolve/main/c.safetensors"
    assert mirrored(spec.url) == spec.url


def test_a_cached_file_that_changed_is_refused(spec, cache_folder):
    path = find_weights(spec)
    path.write_bytes(BODY[:-1] + b"!")
    with pytest.raises(WeightsError, match=f"expected {SHA256}: delete it to download it again"):
        find_weights(spec)


def test_first_use_binds_later_downloads(spec, server, cache_folder):
    find_weights(spec).unlink()
    server.body = BODY[:-1] + b"!"
    with pytest.raises(WeightsError, match=f"expected {SHA256}.*damaged or replaced"):
        find_weights(spec)
    (cache_folder / "file.pt.json").unlink()
    assert find_weights(spec).read_bytes() == BODY[:-1] + b"!"


def test_a_known_checksum_outweighs_the_record(spec, cache_folder):
    path = find_weights(spec)
    with pytest.raises(WeightsError, match="expected 1111"):
        verify(path, replace(spec, sha256="1" * 64))


def test_an_unchanged_file_is_not_read_again(spec, monkeypatch):
    path = find_weights(spec)
    monkeypatch.setattr(cache, "sha256_of", lambda path: pytest.fail("the file was read"))
    verify(path, spec)
    os.utime(path, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception):
        verify(path, spec)


def test_damaged_record(spec, cache_folder):
    find_weights(spec)
    (cache_folder / "file.pt.json").write_text("{")
    with pytest.raises(WeightsError, match=r"record .*file\.pt\.json is damaged; delete it"):
        find_weights(spec)


def test_local_paths(spec, tmp_path, monkeypatch):
    no_server(monkeypatch)
    path = tmp_path / "mine.pt"
    with pytest.raises(WeightsError, match=r"no weights file .*mine\.pt"):
        find_weights(spec, path)
    path.write_bytes(b"x")
    assert find_weights(spec, str(path)) == path
    with pytest.raises(WeightsError, match="no weights file"):
        find_weights(spec, tmp_path)


def test_bundled_weights_are_never_downloaded(monkeypatch, tmp_path):
    no_server(monkeypatch)
    bundled = ModelSpec(name="small", summary="", licence="Apache-2.0", filename="small.safetensors")
    monkeypatch.setattr(cache, "ASSETS", tmp_path)
    with pytest.raises(WeightsError, match="is missing; install the package again"):
        find_weights(bundled)
    (tmp_path / "small.safetensors").write_bytes(b"x")
    assert find_weights(bundled) == tmp_path / "small.safetensors"
    assert names(tmp_path) == ["small.safetensors"]


# Reading


class Bomb:
    """What a pickle must not be able to do."""

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_nothing(tmp_path):
    bomb = Bomb()
    bomb.path = tmp_path / "ran"
    plain, inside = tmp_path / "plain.pt", tmp_path / "inside.pth"
    plain.write_bytes(pickle.dumps(bomb))
    torch.save({"weight": torch.zeros(1), "bomb": bomb}, inside)
    for path in (plain, inside):
        with pytest.raises(WeightsError, match=r"^.*\(no plain state dict\).*are refused.*$"):
            read_weights(path)
    assert not bomb.path.exists()


def torch_file(path):
    torch.save({"weight": torch.arange(1000.0)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"<html>404</html>",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"\0" * len(whole),
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
    ],
)
def test_damaged_files(tmp_path, suffix, damage):
    path = tmp_path / f"file{suffix}"
    if suffix == ".pt":
        whole = torch_file(path)
    else:
        save_file({"weight": torch.arange(1000.0)}, path)
        whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_weights(path)


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "RN50.pt"
    with zipfile.ZipFile(path, "w") as archive:  # how an archive of torch.jit.save looks from outside
        archive.writestr("RN50/constants.pkl", pickle.dumps(()))
        archive.writestr("RN50/data.pkl", pickle.dumps(()))
        archive.writestr("RN50/version", "3\n")
        archive.writestr("RN50/code/__torch__.py", "")
    with pytest.raises(WeightsError, match="TorchScript are refused"):
        read_weights(path)


@pytest.mark.parametrize("content", [{}, [torch.zeros(1)], torch.zeros(2), {"a": 1}, {"params": {"a": torch.zeros(1)}}])
def test_other_contents(tmp_path, content):
    path = tmp_path / "file.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="no flat dict of tensors"):
        read_weights(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(tmp_path, number):
    path = tmp_path / "file.safetensors"
    save_file({"fine": torch.zeros(3), "odd": torch.tensor([0, number])}, path)
    with pytest.raises(WeightsError, match="NaN or infinite numbers in odd"):
        read_weights(path)


@pytest.mark.parametrize(
    ("odd", "kind"),
    [
        (torch.arange(3), "int64"),
        (torch.zeros(3, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, dtype=torch.bool), "bool"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3, device="meta"), "no values"),
    ],
)
def test_numbers_of_another_kind(tmp_path, odd, kind):
    torch.save({"fine": torch.zeros(3), "odd": odd}, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=rf"file\.pt .* in odd \({kind}\)"):
        read_weights(tmp_path / "file.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floating_point_numbers_are_taken(tmp_path, dtype):
    save_file({"weight": torch.ones(3).to(dtype)}, tmp_path / "file.safetensors")
    assert read_weights(tmp_path / "file.safetensors")[0]["weight"].float().tolist() == [1, 1, 1]


def test_what_float32_cannot_hold_is_infinite(tmp_path):
    save_file({"weight": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "file.safetensors")
    with pytest.raises(WeightsError, match="NaN or infinite numbers in weight"):
        read_weights(tmp_path / "file.safetensors")


def test_names_that_are_no_text(tmp_path):
    torch.save({1: torch.zeros(3)}, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match="no flat dict of tensors"):
        read_weights(tmp_path / "file.pt")


def test_reading(tmp_path):
    tensors = {"a": torch.rand(3), "bn.num_batches_tracked": torch.tensor(3)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"config": "{}"})
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "x.pt")
    for name, expected in (("x.safetensors", {"config": "{}"}), ("x.pt", {})):
        state, metadata = read_weights(tmp_path / name)
        assert metadata == expected
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[key], tensors[key]) for key in tensors)

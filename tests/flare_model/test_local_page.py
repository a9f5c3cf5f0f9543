"""The local page by its real server: the answers of the command, refusals in sentences, and no files left behind."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import signal
import socket
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import trimesh

from flare_model.checkpoints.surrogate import from_pretrained
from flare_model.compensate import compensate
from flare_model.decision.answer import identity_of
from flare_model.decision.auxiliary import read_auxiliary
from flare_model.local_page.inference import InferenceService
from flare_model.local_page.job_queue import MAX_JOBS, ClientGoneError, JobQueue, QueueFullError
from flare_model.local_page.server import check_host, open_socket
from flare_model.local_page.uploads import working_folder
from flare_model.prediction.part import Meshing
from lpbf_data.errors import UsageError
from tests.commands import run_here
from tests.flare_model.local_server import Server
from tests.flare_model.test_decision import box, model, table, write_constant_risk

__all__ = ["model"]

OBJ = b"v 0.25 1.5 2\nv 1 0 0\nv 0 1 0\nf 1 2 3\n" * 10
HEAD = b"solid part\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\n"


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that reads up to 1 MB, and whose temporary files a test can list."""
    write_constant_risk(model, 9.0)
    with Server(model, tmp_path_factory.mktemp("page"), "--most_mb", "1", "--points", "400") as running:
        yield running


def large_3mf() -> bytes:
    """A 3MF file whose model decompresses to 300 MiB of blanks."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("_rels/.rels", '<Relationships><Relationship Id="a" Type="http://schemas.microsoft.com/'
                         '3dmanufacturing/2013/01/3dmodel" Target="/3D/3dmodel.model"/></Relationships>')  # fmt: skip
        with archive.open("3D/3dmodel.model", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(b" " * 2**20)
    return packed.getvalue()


def answers_in(out: Path) -> Any:
    """What a command wrote, but for the list of its files: the page writes none."""
    content = json.loads((out / "answers.json").read_text())
    assert content.pop("files")
    return content


def test_the_page_gives_the_answers_of_the_command(server: Server, model: Path, tmp_path: Path) -> None:
    pair = tmp_path / "pair.stl"
    (box(20, 10, 12) + box(9, 9, 30, at=(40, 0, 3))).export(pair)
    words = ["--checkpoint", str(model), "--points", "400", "--pictures", "false", "--out", str(tmp_path / "out")]
    said = run_here("flare_model.predict", str(pair), *words)
    assert said.returncode == 0, said.stderr
    status, _, body = server.send("answer?name=pair.stl", pair.read_bytes())
    assert status == 200
    found = json.loads(body)
    assert found["answers"] == answers_in(tmp_path / "out")
    lines = [f"  {name:12}{text}" for part in found["parts"] for name, text in part["facts"]]
    assert [line for line in said.stdout.splitlines() if line.startswith("  ")] == lines
    assert len(lines) > 10
    told = found["answers"]["parts"].values()
    assert [part["verdict"] for part in found["parts"]] == [answer["hit"]["verdict"] for answer in told]
    assert found["closing"] in said.stdout
    assert [f"note: {note}" for note in found["notes"]] == [s for s in said.stderr.splitlines() if s[:5] == "note:"]
    assert found["notes"]
    assert server.uploads() == []


def test_the_page_for_another_material_gives_the_answers_of_the_command(model: Path, tmp_path: Path) -> None:
    box(20, 10, 12).export(tmp_path / "box.stl")
    words = ["--checkpoint", str(model), "--points", "200", "--material", "Inc625", "--out", str(tmp_path / "out")]
    said = run_here("flare_model.predict", str(tmp_path / "box.stl"), *words, "--pictures", "false")
    assert said.returncode == 0, said.stderr
    surrogate = from_pretrained(str(model))
    auxiliary, _ = read_auxiliary(str(model), surrogate, "Inc625")
    computing, meshing = InferenceService(surrogate, auxiliary, 200, identity_of(surrogate, str(model))), Meshing(200)
    found = computing.answer(tmp_path / "box.stl", meshing)
    assert json.loads(json.dumps(found["answers"])) == answers_in(tmp_path / "out")
    straight = computing.compensate(tmp_path / "box.stl", meshing, -1.0)
    assert compensate(str(tmp_path / "box.stl"), str(tmp_path / "new.stl"), checkpoint=str(model), points=200,
                      material="Inc625") == 0  # fmt: skip
    assert straight.stl == (tmp_path / "new.stl").read_bytes()


def test_the_compensated_part_is_that_of_the_command(server: Server, model: Path, tmp_path: Path) -> None:
    box(20, 10, 12, at=(3, 2, 1)).export(tmp_path / "box.stl")
    source = str(tmp_path / "box.stl")
    assert compensate(source, str(tmp_path / "new.stl"), checkpoint=str(model), points=300, scale=0.5) == 0
    status, headers, body = server.send(
        "compensate?name=b%C3%B6x%2F%22.stl&points=300&scale=0.5", Path(source).read_bytes()
    )
    assert status == 200
    assert body == (tmp_path / "new.stl").read_bytes()
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''%22_moved_0.5_times.stl"
    said = json.loads(unquote(headers["x-lpbf-said"]))
    assert said["said"][0].endswith("closed, crosses itself nowhere")
    assert server.uploads() == []


@pytest.mark.parametrize(
    ("name", "body", "status", "sentence"),
    [
        ("part.stl", b"", 422, "part.stl: the file is empty; export it again"),
        ("part.stl", HEAD, 422, "part.stl"),
        ("part.exe", b"MZ", 422, "part.exe: .exe files can't be read here; send one of .stl, .obj"),
        ("part", b"MZ", 422, "part: a file without suffix can't be read here"),
        ("part.zip", b"PK", 422, ".zip files can't be read here"),
        ("../../x.3mf", large_3mf, 422, "x.3mf: it unfolds to 300 MiB"),
        ("x.3mf", b"PK\x03\x04", 422, "x.3mf: it is no archive as 3MF files are"),
        ("x.stl", OBJ, 422, "x.stl: it is no STL file: it is text that begins with 'v 0.25 1.5 2'"),
        ("x.stl", b"<html>404</html>", 422, "x.stl: it is no STL file"),
        ("x.vtu", b"<VTKFile>", 422, "x.vtu can't be read as a mesh"),
        ("x.ply", b"ply\nformat ascii 1.0\n", 422, "x.ply: "),
        ("x.stl&points=3", b"solid", 422, "points must lie between 8 and 200,000"),
        ("x.stl&points=many", b"solid", 422, "points must be a number"),
        ("x.stl&scale=1", b"solid", 422, "/answer has no parameter scale; it takes name, units and points."),
        (
            "x.stl&unit=inch&material=Inc625",
            b"solid",
            422,
            "no parameter unit (did you mean units?), material; it takes name, units and points. Model and material",
        ),
        ("x.stl&units=mm&units=inch", b"solid", 422, "units must be given once"),
        ("x.stl&units=parsec", b"solid", 422, "units must be one of um, mm"),
        ("x.stl", bytes(1_000_001), 413, "the file is larger than 1 MB"),
    ],
)
def test_what_can_not_be_read_is_refused_in_a_sentence(
    server: Server, name: str, body: bytes | Callable[[], bytes], status: int, sentence: str
) -> None:
    sent = body if isinstance(body, bytes) else body()
    got, headers, answer = server.send(f"answer?name={quote(name, safe='&=')}", sent)
    said = json.loads(answer)["error"]
    assert (got, headers["content-type"]) == (status, "application/json")
    assert sentence in said
    assert str(server.folder) not in said
    assert server.uploads() == []


def test_a_doubtful_compensation_is_given_only_with_anyway(server: Server) -> None:
    body = trimesh.exchange.stl.export_stl(table())
    for words, sentence in (
        ("scale=nan", "scale must lie between -5 and 5"),
        ("anyway=perhaps", "anyway must be true or false"),
        ("scala=2", "no parameter scala (did you mean scale?); it takes name, units, points, scale and anyway"),
        ("anyway=false", "isn't quite the part: 84% of its volume"),
    ):
        status, _, answer = server.send(f"compensate?name=x.stl&points=300&{words}", body)
        assert status == 422
        assert sentence in json.loads(answer)["error"]
    status, headers, _ = server.send("compensate?name=x.stl&points=300&anyway=true", body)
    assert status == 200
    assert "isn't quite the part: 84% of its volume" in json.loads(unquote(headers["x-lpbf-said"]))["notes"][0]


def test_a_form_in_place_of_a_file_is_refused(server: Server) -> None:
    for path in ("answer", "answer?name=x.stl", "compensate?name=x.stl"):
        headers = {"Content-Type": "multipart/form-data; boundary=------------------------abc"}
        status, _, body = server.send(path, b"--------------------------abc\r\n", headers=headers)
        assert status == 422
        assert json.loads(body)["error"] == "send the file itself (curl --data-binary @part.stl), not a form"


def faulty_stl(how: str) -> bytes:
    """A box of 20 by 10 by 12 mm as a binary STL with a fault, or in metres."""
    raw = trimesh.exchange.stl.export_stl(box(20, 10, 12))
    head, records = raw[:80], [raw[84 + 50 * k : 134 + 50 * k] for k in range(12)]
    if how == "doubled":
        return head + struct.pack("<I", 13) + b"".join([*records, records[0]])
    if how == "cut":
        return raw[:-30]
    if how == "open":
        return head + struct.pack("<I", 11) + b"".join(records[1:])
    if how == "metres":
        return trimesh.exchange.stl.export_stl(box(0.02, 0.01, 0.012))
    big = [struct.pack(">12fH", *struct.unpack("<12fH", record)) for record in records]
    return head + struct.pack(">I", 12) + b"".join(big)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("doubled", "repaired: facets that were there more than once were merged"),
        ("big-endian", "repaired: a binary STL in the other byte order (big-endian) was read so"),
        ("cut", "is cut short: it says that it holds 12 triangles, and 11 are there"),
        ("open", "3 of 18 edges have no neighbour; close its holes"),
        (
            "metres",
            "box.stl: lengths were read in mm, since the file states no unit, and the part is less than 1 mm wide;",
        ),
    ],
)
def test_faults_of_surfaces_are_reported_by_both_commands_and_the_page(
    server: Server, model: Path, tmp_path: Path, how: str, sentence: str
) -> None:
    (tmp_path / "box.stl").write_bytes(faulty_stl(how))
    words = [str(tmp_path / "box.stl"), "--checkpoint", str(model), "--points", "300", "--out"]
    repaired = sentence.startswith("repaired")
    predicted = run_here("flare_model.predict", *words, str(tmp_path / "out"), "--pictures", "false")
    moved = run_here("flare_model.compensate", words[0], str(tmp_path / "new.stl"), *words[1:5])
    for done in (predicted, moved):
        assert (done.returncode == 0) == repaired
        assert sentence in done.stderr
        assert len([line for line in done.stderr.splitlines() if line.startswith(("error", "note"))]) == 1
    status, _, body = server.send("answer?name=box.stl&points=300", faulty_stl(how))
    found = json.loads(body)
    assert sentence in (found["notes"][0] if repaired else found["error"])
    status, headers, body = server.send("compensate?name=box.stl&points=300", faulty_stl(how))
    said = unquote(headers["x-lpbf-said"]) if repaired else json.loads(body)["error"]
    assert sentence in said
    assert (status == 200) == repaired == (tmp_path / "new.stl").exists()
    if how == "metres":  # sent again with its unit
        assert server.send("answer?name=box.stl&points=300&units=m", faulty_stl(how))[0] == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "endless"])
def test_an_upload_of_two_gigabytes_is_refused_early(server: Server, chunked: bool) -> None:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {2 * 10**9}"
    head = f"POST /answer?name=part.stl HTTP/1.1\r\nHost: localhost:{server.port}\r\n{length}\r\n\r\n"
    piece = b"10000\r\n" + bytes(65536) + b"\r\n" if chunked else bytes(65536)
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as raw:
        raw.sendall(head.encode())
        answer = b""
        while b"MB" not in answer:
            raw.setblocking(False)
            try:
                sent += raw.send(piece[sent % len(piece) :])  # what was not accepted is sent next
            except BlockingIOError:
                time.sleep(0.001)
            try:
                answer += raw.recv(65536)
            except BlockingIOError:
                continue
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the file is larger than 1 MB, and was not read further" in answer
    assert sent < 20_000_000
    assert server.uploads() == []


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"Host": "attacker.example"}, ""),
        ({"Host": "localhost.attacker.example:{port}"}, "state"),
        ({"Host": "127.0.0.1@attacker.example"}, ""),
        ({"Host": ""}, ""),
        ({"Origin": "http://attacker.example"}, "answer?name=x.stl"),
        ({"Origin": "null"}, "state"),
        ({"Origin": "https://127.0.0.1:{port}"}, "state"),
        ({"Sec-Fetch-Site": "cross-site"}, "state"),
        ({"Sec-Fetch-Site": "same-site"}, "answer?name=x.stl"),
    ],
)
def test_requests_from_other_sites_are_refused(server: Server, headers: dict[str, str], path: str) -> None:
    given = {name: value.format(port=server.port) for name, value in headers.items()}
    method = "POST" if path.startswith("answer") else "GET"
    status, answered, body = server.send(path, b"solid" if method == "POST" else None, method, given)
    assert status == 403
    named = "under the address that it printed, and under no other name"
    wanted = named if "Host" in headers else "itself, and no page of another address"
    assert json.loads(body)["error"] == f"this page answers {wanted}"
    assert not [name for name in answered if name.startswith("access-control")]


def test_the_page_is_served_to_this_machine_alone_and_may_contact_no_other_site(server: Server) -> None:
    origin = f"http://localhost:{server.port}"
    # Through a tunnel the port may be another one.
    for host in (f"127.0.0.1:{server.port}", "LOCALHOST:9000", f"[::1]:{server.port}"):
        assert server.send("state", None, "GET", {"Host": host})[0] == 200
    assert server.send("state", None, "GET", {"Host": origin[7:], "Origin": origin})[0] == 200
    status, headers, body = server.send(
        "", None, "GET", {"Sec-Fetch-Site": "cross-site"}
    )  # by a link from another site
    assert status == 200
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert b"connect-src &#39;self&#39;" in body or b"connect-src 'self'" in body
    assert b"http://" not in body.partition(b"<script")[0].replace(b"http://www.w3.org", b"")
    for method, path in (("GET", "answer"), ("POST", ""), ("GET", "../etc/passwd"), ("OPTIONS", "answer")):
        assert server.send(path, None, method)[0] == 404
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.2", server.port, timeout=5).connect()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_that_ends_during_an_upload_leaves_no_files(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with contextlib.ExitStack() as sending, Server(model, tmp_path) as running:
        raw = socket.create_connection(("127.0.0.1", running.port))
        sending.enter_context(raw)
        raw.sendall(b"POST /answer?name=x.stl HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n" + bytes(100))
        limit = time.monotonic() + 30
        while not running.uploads() and time.monotonic() < limit:
            time.sleep(0.01)
        assert running.uploads()
        running.program.send(number)
        status = running.program.end(60)
        if number == signal.SIGKILL:
            assert running.uploads()
        else:
            assert status == 0, running.program.text()
            assert list(running.folder.glob("lpbf-serve-*")) == []
    with pytest.MonkeyPatch.context() as patch:  # the next server removes what was left
        patch.setattr("tempfile.tempdir", str(running.folder))
        with working_folder() as folder:
            assert list(running.folder.glob("lpbf-serve-*")) == [folder]
            with working_folder() as other:  # a folder in use is kept
                assert folder.is_dir()
                assert other != folder
    assert list(running.folder.glob("lpbf-serve-*")) == []


def test_hosts_and_ports_that_can_not_be_used_are_refused() -> None:
    for host in ("0.0.0.0", "192.168.1.7", "::", "example.com", ""):
        with pytest.raises(UsageError, match=r"must be a loopback address.* ssh -L"):
            check_host(host)
    with open_socket("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="take another --port, or 0"):
        open_socket("127.0.0.1", taken.getsockname()[1])


def test_jobs_run_one_at_a_time_in_order_and_up_to_a_number() -> None:
    async def connected() -> bool:
        return False

    async def disconnected() -> bool:
        return True

    async def run_jobs() -> None:
        work, running, order = JobQueue(), [], []

        def job(number: int) -> int:
            running.append(number)
            assert running == [number]
            time.sleep(0.01)
            order.append(number)
            running.remove(number)
            if number == 2:
                raise ValueError("two")
            return number

        jobs = [work.run(lambda k=number: job(k), disconnected if number == 4 else connected) for number in range(6)]  # type: ignore[misc]
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert order == [0, 1, 2, 3, 5]
        assert found[:2] == [0, 1]
        assert isinstance(found[2], ValueError)
        assert isinstance(found[4], ClientGoneError)
        places = [work.slot() for _ in range(MAX_JOBS)]
        for place in places:
            place.__enter__()
        with pytest.raises(QueueFullError, match="in a minute"), work.slot():
            pass
        places[0].__exit__(None, None, None)
        with work.slot():
            assert work.num_jobs == MAX_JOBS

    asyncio.run(run_jobs())

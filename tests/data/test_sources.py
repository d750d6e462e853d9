import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from crystallm.canonical import canonicalize
from crystallm.cif import parse_cif
from crystallm.data.download import Connection, DownloadError, _retry_after, download
from crystallm.data.prepare import PrepareConfig, prepare
from crystallm.data.readers import read_sources
from crystallm.data.sources import download_cdvae, download_materials_project, download_optimade, p1_cif

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAST = Connection(first_wait_s=0.01, attempts=5, timeout_s=5, show_progress=False)


class Server(ThreadingHTTPServer):
    """Serves `files`, with ranges; `faults` are used up first, one a request: a status code, or "cut" in the middle."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.log, self.etag, self.headers = {}, [], [], '"v1"', {}
        self.answer = None  # (path, query) → object, instead of files
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.log.append((self.path, dict(self.headers)))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            self.send_response(fault)
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        parts = urllib.parse.urlsplit(self.path)
        if server.answer:
            body = json.dumps(server.answer(parts.path, dict(urllib.parse.parse_qsl(parts.query)))).encode()
        elif parts.path in server.files:
            body = server.files[parts.path]
        else:
            self.send_error(404)
            return
        start, status = 0, 200
        if "Range" in self.headers and self.headers.get("If-Range") == server.etag:
            start, status = int(self.headers["Range"][len("bytes=") : -1]), 206
            if start >= len(body):
                self.send_error(416)
                return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(body[start : start + (len(body) - start) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body[start:])


@pytest.fixture
def server():
    server = Server()
    server.files["/x.bin"] = CONTENT
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ranges(server):
    return [headers.get("Range") for _, headers in server.log]


def test_a_file_and_its_checksum(server, tmp_path):
    path = download(f"{server.url}/x.bin", tmp_path / "sub" / "x.bin", SHA256, FAST)
    assert path.read_bytes() == CONTENT
    assert (tmp_path / "sub" / "x.bin.sha256").read_text() == f"{SHA256}  x.bin\n"  # as sha256sum --check reads it
    download(f"{server.url}/x.bin", path, None, FAST)
    assert len(server.log) == 1  # there already, and whole
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.bin", "x.bin.sha256"]


def test_busy_servers_are_asked_again(server, tmp_path):
    server.faults = [429, 500, 503]
    assert download(f"{server.url}/x.bin", tmp_path / "x", SHA256, FAST).read_bytes() == CONTENT
    assert len(server.log) == 4


def test_retry_after_is_obeyed(server, tmp_path):
    server.faults, server.headers = [429], {"Retry-After": "0.4"}
    start = time.monotonic()
    download(f"{server.url}/x.bin", tmp_path / "x", SHA256, FAST)
    assert 0.4 <= time.monotonic() - start < 3
    assert _retry_after(formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2)
    assert _retry_after("soon") is None


def test_truncated_replies_are_continued(server, tmp_path):
    server.faults = ["cut", "cut"]
    assert download(f"{server.url}/x.bin", tmp_path / "x", SHA256, FAST).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=128000-", "bytes=192000-"]


def test_a_later_call_goes_on(server, tmp_path):
    server.faults = ["cut", 500]
    with pytest.raises(DownloadError, match="given up after 2 attempts; the last ended with 500"):
        download(f"{server.url}/x.bin", tmp_path / "x", SHA256, Connection(attempts=2, first_wait_s=0.01))
    assert not (tmp_path / "x").exists()
    assert download(f"{server.url}/x.bin", tmp_path / "x", SHA256, FAST).read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=128000-"


@pytest.mark.parametrize("etag", ['"v2"', None, 'W/"v1"'])
def test_a_changed_or_unmarked_file_begins_anew(server, tmp_path, etag):
    server.faults = ["cut"]
    if etag != '"v2"':
        server.etag = etag
    with pytest.raises(DownloadError):
        download(f"{server.url}/x.bin", tmp_path / "x", None, Connection(attempts=1))
    server.etag = etag
    assert download(f"{server.url}/x.bin", tmp_path / "x", SHA256, FAST).read_bytes() == CONTENT


def test_a_whole_part_file_is_not_asked_for_again(server, tmp_path):
    (tmp_path / "x.part").write_bytes(CONTENT)
    state = {"url": f"{server.url}/x.bin", "tag": '"v1"', "size": len(CONTENT)}
    (tmp_path / "x.part.state").write_text(json.dumps(state))
    assert download(f"{server.url}/x.bin", tmp_path / "x", SHA256, FAST).read_bytes() == CONTENT
    assert len(server.log) == 1


def test_wrong_checksums(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"sha256 is {SHA256}, wanted 00"):
        download(f"{server.url}/x.bin", tmp_path / "x", "00" * 32, FAST)
    assert list(tmp_path.glob("x*")) == [] or not (tmp_path / "x").exists()
    download(f"{server.url}/x.bin", tmp_path / "x", None, FAST)
    (tmp_path / "x").write_bytes(b"changed here")
    with pytest.raises(DownloadError, match="delete the file to download it again"):
        download(f"{server.url}/x.bin", tmp_path / "x", None, FAST)
    (tmp_path / "x").unlink()
    server.files["/x.bin"] = b"changed there"
    with pytest.raises(DownloadError, match="the file differs from the one recorded"):
        download(f"{server.url}/x.bin", tmp_path / "x", None, FAST)


def test_errors_that_waiting_does_not_mend(server, tmp_path):
    with pytest.raises(DownloadError, match="404 Not Found"):
        download(f"{server.url}/gone", tmp_path / "x", None, FAST)
    assert len(server.log) == 1
    server.faults = [401]
    with pytest.raises(DownloadError, match="is the API key right"):
        download(f"{server.url}/x.bin", tmp_path / "x", None, FAST)
    with pytest.raises(DownloadError, match="wanted an http or https address"):
        download("file:///etc/passwd", tmp_path / "x", None, FAST)
    with pytest.raises(DownloadError, match="given up after 2 attempts"):
        download("http://127.0.0.1:1/x", tmp_path / "x", None, Connection(attempts=2, first_wait_s=0.01))


# ------------------------------------------------------------------ paged queries


def document(k):
    a = 4.0 + k / 10
    half = a / 2
    return {
        "material_id": f"mp-{k}",
        "band_gap": k / 2,
        "formation_energy_per_atom": -1.0,
        "energy_above_hull": 0.0,
        "structure": {
            "lattice": {"matrix": [[0, half, half], [half, 0, half], [half, half, 0]]},
            "sites": [
                {"species": [{"element": "Na", "occu": 1}], "abc": [0, 0, 0]},
                {"species": [{"element": "Cl", "occu": 1}], "abc": [0.5, 0.5, 0.5]},
            ],
        },
    }


def materials_project(path, query):
    assert path == "/materials/summary/"
    skip, limit = int(query["_skip"]), int(query["_limit"])
    return {"data": [document(k) for k in range(23)][skip : skip + limit], "meta": {"total_doc": 23}}


def test_materials_project(server, tmp_path):
    server.answer, server.faults = materials_project, [None, 429, "cut"]
    path = download_materials_project(tmp_path / "mp.jsonl", "KEY", {"chemsys": "Na-Cl"}, server.url, 5, FAST)
    records = list(read_sources([path]))
    assert [record.id for record in records] == [f"mp-{k}" for k in range(23)]
    crystal, _ = parse_cif(records[3].cif)
    assert crystal.reduced_formula == "NaCl"
    assert crystal.cell.tolist() == pytest.approx([4.3 / 2**0.5] * 3 + [60.0] * 3)
    assert records[3].scores == {
        "band_gap_ev": 1.5,
        "formation_energy_ev_per_atom": -1.0,
        "e_above_hull_ev_per_atom": 0.0,
    }
    assert {headers["X-Api-Key"] for _, headers in server.log} == {"KEY"}
    assert all("chemsys=Na-Cl" in address and "_fields=material_id%2Cstructure" in address for address, _ in server.log)
    assert len(server.log) == 5 + 2
    result = prepare(PrepareConfig((str(path),), str(tmp_path / "out"), workers=0), show_progress=False)
    assert result.n_read == 23 and result.n_kept > 1


def test_a_broken_query_goes_on_at_its_page(server, tmp_path):
    server.answer, server.faults = materials_project, [None, None, 500, 500]
    impatient = Connection(attempts=2, first_wait_s=0.01, show_progress=False)
    with pytest.raises(DownloadError):
        download_materials_project(tmp_path / "mp.jsonl", "KEY", {}, server.url, 5, impatient)
    with (tmp_path / "mp.jsonl.part").open("ab") as file:
        file.write(b'{"half a row')  # as a kill leaves it
    server.log.clear()
    path = download_materials_project(tmp_path / "mp.jsonl", "KEY", {}, server.url, 5, FAST)
    assert [record.id for record in read_sources([path])] == [f"mp-{k}" for k in range(23)]
    assert len(server.log) == 3
    download_materials_project(path, "KEY", {}, server.url, 5, FAST)
    assert len(server.log) == 3 and (tmp_path / "mp.jsonl.sha256").exists()


def test_no_key_no_request(server, tmp_path):
    with pytest.raises(DownloadError, match="set MP_API_KEY"):
        download_materials_project(tmp_path / "mp.jsonl", "", {}, server.url)
    assert server.log == []


def entry(k, **changes):
    attributes = {
        "lattice_vectors": [[4.12, 0, 0], [0, 4.12, 0], [0, 0, 4.12]],
        "cartesian_site_positions": [[0, 0, 0], [2.06, 2.06, 2.06]],
        "species": [
            {"name": "Cs+", "chemical_symbols": ["Cs"], "concentration": [1.0]},
            {"name": "Cl", "chemical_symbols": ["Cl"], "concentration": [1.0]},
        ],
        "species_at_sites": ["Cs+", "Cl"],
        "_x_band_gap": 6.0,
    }
    return {"id": f"odd id/{k}", "type": "structures", "attributes": attributes | changes}


def disordered(symbols, concentration):
    chloride = {"name": "Cl", "chemical_symbols": ["Cl"], "concentration": [1.0]}
    return [{"name": "Cs+", "chemical_symbols": symbols, "concentration": concentration}, chloride]


@pytest.mark.parametrize("as_object", [False, True])
def test_optimade(server, tmp_path, as_object):
    entries = [
        entry(0),
        entry(1, species=disordered(["Cs", "K"], [0.5, 0.5])),
        entry(2, species=disordered(["Cs", "vacancy"], [0.9, 0.1])),
        entry(3, lattice_vectors=[[4, 0, 0], [0, 4, 0], [None, None, None]]),
        entry(4, species=disordered(["X"], [1.0])),
        entry(5, lattice_vectors=[[0, 0, 0]] * 3),
        entry(6, species_at_sites=None),
        entry(7),
    ]

    def answer(path, query):
        assert path == "/base/v1/structures" and query.get("filter") == "nelements=2"
        at = int(query.get("page_offset", 0))
        link = f"{server.url}{path}?{urllib.parse.urlencode({**query, 'page_offset': at + 2})}" if at < 6 else None
        following = {"href": link} if as_object and link else link
        return {"data": entries[at : at + 2], "links": {"next": following}, "meta": {"data_returned": 8}}

    server.answer = answer
    path = download_optimade(
        tmp_path / "o.jsonl", f"{server.url}/base/", "nelements=2", 2, ["_x_band_gap"], connection=FAST
    )
    records = list(read_sources([path], properties={"_x_band_gap": "band_gap_ev"}))
    assert [record.id for record in records] == [f"odd id/{k}" for k in range(8)]
    assert records[0].scores == {"band_gap_ev": 6.0}
    crystal, _ = parse_cif(records[0].cif)
    assert crystal.reduced_formula == "CsCl" and crystal.frac_coords[1].tolist() == pytest.approx([0.5] * 3)
    config = PrepareConfig((str(path),), str(tmp_path / "out"), workers=0)
    result = prepare(config, show_progress=False)
    assert result.n_kept == 1 and result.rejected_by["duplicate"] == 1
    assert result.rejected_by["partial_occupancy"] == 2 and result.rejected_by["no_cell"] == 3
    assert "# not converted: LinAlgError: Singular matrix" in records[5].cif
    assert sum(result.rejected_by.values()) == 7


def test_a_left_handed_cell_is_no_mirror_image(root):
    quartz, _ = parse_cif((root / "tests/cifs/quartz.cif").read_text())
    rows, frac = quartz.lattice[[1, 0, 2]], quartz.frac_coords[:, [1, 0, 2]]
    again, _ = parse_cif(p1_cif("quartz", rows.tolist(), [[(s, 1.0)] for s in quartz.symbols], frac.tolist()))
    assert canonicalize(again).to_text() == canonicalize(quartz).to_text()
    assert canonicalize(again).group.symbol == "P3_221"


def test_replies_that_are_no_pages(server, tmp_path):
    server.answer = lambda path, query: {"errors": ["no"]}
    with pytest.raises(DownloadError, match='wanted an object with a list "data"'):
        download_optimade(tmp_path / "o.jsonl", server.url, connection=FAST)
    server.answer = lambda path, query: {"data": [], "links": {"next": "file:///etc/passwd"}}
    with pytest.raises(DownloadError, match="wanted an http or https address"):
        download_optimade(tmp_path / "o.jsonl", server.url, connection=FAST)
    server.answer = lambda path, query: {"data": [], "links": {"next": server.url + server.log[-1][0]}}
    with pytest.raises(DownloadError, match="names itself as the next page"):
        download_optimade(tmp_path / "p.jsonl", server.url, connection=FAST)


def test_cdvae_sets_with_their_split(server, tmp_path, rock_salt):
    rows = {"train": ("Li", "Na"), "val": ("K",), "test": ("Rb",)}
    for split, cations in rows.items():
        lines = [f'{k},mp-{cation},{k}.5,"{rock_salt(cation)}"' for k, cation in enumerate(cations)]
        text = ",material_id,band_gap,cif\n" + "\n".join(lines) + "\n"
        server.files[f"/data/mp_20/{split}.csv"] = text.encode()
    path = download_cdvae("mp_20", tmp_path, f"{server.url}/data", connection=FAST)
    records = list(read_sources([path], split_column="split"))
    assert [(r.id, r.provenance["split"]) for r in records] == [
        ("mp-Li", "train"),
        ("mp-Na", "train"),
        ("mp-K", "val"),
        ("mp-Rb", "test"),
    ]
    assert records[1].scores == {"band_gap_ev": 1.5} and records[1].cif == rock_salt("Na")
    assert (tmp_path / "mp_20_val.csv.sha256").exists()
    with pytest.raises(ValueError, match="'mp20' is none of the CDVAE sets perov_5"):
        download_cdvae("mp20", tmp_path)
    with pytest.raises(DownloadError, match="wanted 00"):
        download_cdvae("mp_20", tmp_path / "b", f"{server.url}/data", {"val": "00" * 32}, FAST)


def test_the_script(server, tmp_path, root):
    def script(*arguments):
        command = [sys.executable, str(root / "bin" / "download_data.py"), *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(root)}
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)

    done = script("url", f"{server.url}/x.bin", "--out", "x.bin", "--sha256", SHA256)
    assert done.returncode == 0 and done.stdout == "written to x.bin\n", done.stderr
    failed = script("url", f"{server.url}/gone", "--out", "gone")
    assert failed.returncode == 1 and failed.stderr == f"{server.url}/gone: 404 Not Found\n"

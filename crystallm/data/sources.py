"""Where corpora come from, for users who have none: files by URL, the Materials Project API, any OPTIMADE provider.

What is written is read by bin/prepare_data.py as it is.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crystallm.crystal import right_handed
from crystallm.data.download import Connection, DownloadError, Row, download, download_pages

MATERIALS_PROJECT_URL = "https://api.materialsproject.org"
CDVAE_URL = "https://raw.githubusercontent.com/txie-93/cdvae/main/data"
CDVAE_SETS = ("perov_5", "carbon_24", "mp_20")
MATERIALS_PROJECT_FIELDS = ("material_id", "structure", "band_gap", "formation_energy_per_atom", "energy_above_hull")
OPTIMADE_FIELDS = ("lattice_vectors", "cartesian_site_positions", "species", "species_at_sites")


def download_materials_project(
    path: Path | str,
    api_key: str,
    filters: Mapping[str, str] | None = None,
    base_url: str = MATERIALS_PROJECT_URL,
    page_size: int = 500,
    connection: Connection | None = None,
) -> Path:
    """Summary documents of the Materials Project, with structure, gap, formation energy and energy above hull.

    `filters` are the endpoint's own, such as {"chemsys": "Li-Fe-O"} or {"energy_above_hull_max": "0.1"}.
    """
    if not api_key:
        raise DownloadError("no API key: set MP_API_KEY or give --api-key (materialsproject.org, dashboard)")
    connection = connection or Connection()
    connection = replace(connection, headers={**connection.headers, "X-API-KEY": api_key})
    query = {**(filters or {}), "_fields": ",".join(MATERIALS_PROJECT_FIELDS), "_limit": str(page_size)}

    def page_url(skip: int) -> str:
        return f"{base_url.rstrip('/')}/materials/summary/?{urllib.parse.urlencode({**query, '_skip': str(skip)})}"

    def read_page(url: str, reply: Row) -> tuple[list[Row], str | None, int | None]:
        documents = reply["data"]
        skip = int(urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["_skip"][0]) + len(documents)
        total = reply.get("meta", {}).get("total_doc")
        at_end = not documents or (skip >= total if total is not None else len(documents) < page_size)
        return [_row_of_document(document) for document in documents], None if at_end else page_url(skip), total

    return download_pages(page_url(0), Path(path), read_page, connection)


def _row_of_document(document: Row) -> Row:
    row = {name: document.get(name) for name in MATERIALS_PROJECT_FIELDS if name != "structure"}
    return row | {"cif": _cif_of(str(row["material_id"]), document, _document_sites)}


def _cif_of(name: str, entry: Row, read: Callable[[Row], tuple[Any, list[Any], list[Any]]]) -> str:
    """The CIF of one entry; of one that breaks its schema, a block that says why, for the parser to reject."""
    try:
        return p1_cif(name, *read(entry))
    except (KeyError, TypeError, ValueError, AttributeError, np.linalg.LinAlgError) as err:
        return f"{_data_line(name)}\n# not converted: {type(err).__name__}: {' '.join(str(err).split())}\n"


def _document_sites(document: Row) -> tuple[Any, list[Any], list[Any]]:
    """Lattice, species and fractional coordinates of pymatgen's Structure.as_dict()."""
    structure = document["structure"]
    species = [[(part["element"], part["occu"]) for part in site["species"]] for site in structure["sites"]]
    return structure["lattice"]["matrix"], species, [site["abc"] for site in structure["sites"]]


def download_optimade(
    path: Path | str,
    base_url: str,
    filter_text: str = "",
    page_size: int = 100,
    properties: Sequence[str] = (),
    connection: Connection | None = None,
) -> Path:
    """Structures of an OPTIMADE provider. `filter_text` as OPTIMADE writes it: 'elements HAS ALL "Na","Cl"'.

    `properties` are fields of the provider's own to keep, such as "_oqmd_band_gap".
    """
    base = base_url.rstrip("/")
    base = base if base.rsplit("/", 1)[-1].startswith("v") else f"{base}/v1"
    query = {"page_limit": str(page_size), "response_fields": ",".join([*OPTIMADE_FIELDS, *properties])}
    query |= {"filter": filter_text} if filter_text else {}

    def read_page(url: str, reply: Row) -> tuple[list[Row], str | None, int | None]:
        following = (reply.get("links") or {}).get("next")
        following = following.get("href") if isinstance(following, dict) else following
        rows = [_row_of_entry(entry, properties) for entry in reply["data"]]
        total = (reply.get("meta") or {}).get("data_returned")
        return rows, urllib.parse.urljoin(url, following) if following else None, total

    first = f"{base}/structures?{urllib.parse.urlencode(query)}"
    return download_pages(first, Path(path), read_page, connection or Connection())


def _row_of_entry(entry: Row, properties: Sequence[str]) -> Row:
    attributes = entry.get("attributes") or {}
    kept = {name: attributes.get(name) for name in properties}
    return {"id": str(entry["id"]), "cif": _cif_of(str(entry["id"]), attributes, _optimade_sites), **kept}


def _optimade_sites(attributes: Row) -> tuple[Any, list[Any], list[Any]]:
    lattice = attributes["lattice_vectors"]
    if lattice is None or any(x is None for vector in lattice for x in vector):
        return None, [], []  # a molecule or a slab
    parts_of = {
        kind["name"]: [
            (symbol, share)
            for symbol, share in zip(kind["chemical_symbols"], kind["concentration"], strict=True)
            if symbol != "vacancy"
        ]
        for kind in attributes["species"]
    }
    positions = np.array(attributes["cartesian_site_positions"], dtype=float).reshape(-1, 3)  # (n, 3), Å
    frac_coords = positions @ np.linalg.inv(np.array(lattice, dtype=float))
    return lattice, [parts_of[name] for name in attributes["species_at_sites"]], frac_coords.tolist()


def p1_cif(
    name: str,
    lattice: Sequence[Sequence[float]] | None,  # (3, 3) rows, Å; None for a molecule
    species: Iterable[Sequence[tuple[str, float]]],  # for each site (symbol, occupancy), more than one where disordered
    frac_coords: Iterable[Sequence[float]],  # (n, 3)
) -> str:
    """What a database states, as a P1 CIF. Disorder and missing cells go in as they are, for the parser to name."""
    lines = [_data_line(name)]
    if lattice is not None:
        rows = np.array(lattice, dtype=float)  # (3, 3)
        lengths = np.linalg.norm(rows, axis=1)
        lines += [f"_cell_length_{axis} {length:.8f}" for axis, length in zip("abc", lengths, strict=True)]
        for angle, i, j in (("alpha", 1, 2), ("beta", 0, 2), ("gamma", 0, 1)):
            cosine = float(np.clip(rows[i] @ rows[j] / (lengths[i] * lengths[j]), -1, 1))
            lines.append(f"_cell_angle_{angle} {np.degrees(np.arccos(cosine)):.8f}")
        frac_coords = right_handed(rows, np.array(list(frac_coords)).reshape(-1, 3)).tolist()
    lines += ["_symmetry_space_group_name_H-M 'P 1'", "loop_"]
    lines += [f"_atom_site_{tag}" for tag in ("label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy")]
    for number, (parts, (x, y, z)) in enumerate(zip(species, frac_coords, strict=True)):
        lines += [f"{s}{number} {s} {x:.8f} {y:.8f} {z:.8f} {occupancy:g}" for s, occupancy in parts]
    return "\n".join(lines) + "\n"


def _data_line(name: str) -> str:
    return "data_" + ("".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name) or "structure")


# ------------------------------------------------------------------ the CDVAE benchmark sets


def download_cdvae(
    name: str,
    folder: Path | str,
    base_url: str = CDVAE_URL,
    sha256: Mapping[str, str] | None = None,
    connection: Connection | None = None,
) -> Path:
    """One of CDVAE_SETS: the three CSVs in `folder`, and beside them one parquet file with a column `split`.

    `sha256` by split, where known; no publisher states one, so none is built in.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if name not in CDVAE_SETS:
        raise ValueError(f"{name!r} is none of the CDVAE sets {', '.join(CDVAE_SETS)}")
    folder = Path(folder)
    tables = []
    for split in ("train", "val", "test"):
        path = folder / f"{name}_{split}.csv"
        download(f"{base_url.rstrip('/')}/{name}/{split}.csv", path, (sha256 or {}).get(split), connection)
        parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
        table = pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(block_size=1 << 26), parsing)
        tables.append(table.append_column("split", pa.array([split] * table.num_rows)))
    target = folder / f"{name}.parquet"
    part = target.with_name(f".{target.name}.part")
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), part, compression="zstd")
    part.replace(target)
    return target

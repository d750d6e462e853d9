"""Download a corpus:  python bin/download_data.py cdvae mp_20 --out data/

    materials-project --out mp.jsonl [--filter chemsys=Li-Fe-O]     a key from materialsproject.org in MP_API_KEY
    optimade URL --out cod.jsonl --filter 'nelements=2'             any provider, e.g. https://optimade.materialsproject.org
    cdvae perov_5|carbon_24|mp_20 --out FOLDER                      the benchmark sets, with their splits
    url URL --out FILE [--sha256 HEX]                               any file

An interrupted download goes on when the same command is run again. bin/prepare_data.py reads what is written.
"""

from __future__ import annotations

import argparse
import os

from crystallm.data import sources
from crystallm.data.download import DownloadError, download


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    project = commands.add_parser("materials-project")
    project.add_argument("--api-key", default=os.environ.get("MP_API_KEY", ""))
    project.add_argument("--filter", action="append", default=[], metavar="NAME=VALUE")
    project.add_argument("--base-url", default=sources.MATERIALS_PROJECT_URL)
    optimade = commands.add_parser("optimade")
    optimade.add_argument("base_url", metavar="URL")
    optimade.add_argument("--filter", default="", help="as OPTIMADE writes it")
    optimade.add_argument("--property", action="append", default=[], help="a field of the provider's own to keep")
    cdvae = commands.add_parser("cdvae")
    cdvae.add_argument("name", choices=sources.CDVAE_SETS)
    cdvae.add_argument("--base-url", default=sources.CDVAE_URL)
    cdvae.add_argument("--sha256", action="append", default=[], metavar="SPLIT=HEX")
    url = commands.add_parser("url")
    url.add_argument("url")
    url.add_argument("--sha256")
    for command in (project, optimade, cdvae, url):
        command.add_argument("--out", required=True)
    return parser.parse_args()


def pairs(texts: list[str]) -> dict[str, str]:
    if wrong := [text for text in texts if "=" not in text]:
        raise SystemExit(f"wanted NAME=VALUE, got {wrong[0]!r}")
    return dict(text.split("=", 1) for text in texts)


def run(a: argparse.Namespace) -> object:
    if a.command == "materials-project":
        return sources.download_materials_project(a.out, a.api_key, pairs(a.filter), a.base_url)
    if a.command == "optimade":
        return sources.download_optimade(a.out, a.base_url, a.filter, properties=a.property)
    if a.command == "cdvae":
        return sources.download_cdvae(a.name, a.out, a.base_url, pairs(a.sha256))
    return download(a.url, a.out, a.sha256)


if __name__ == "__main__":
    try:
        print(f"written to {run(parse_arguments())}")
    except DownloadError as err:
        raise SystemExit(str(err)) from None

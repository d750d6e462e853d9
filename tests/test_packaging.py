"""What a user installs: the lazy package, the console commands, the wheel in another folder, the README's commands."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import crystallm

COMMANDS = {  # function of crystallm.cli: how the help of its script begins
    "train": r"arguments: ",
    "sample": r"usage: sample\.py",
    "evaluate": r"usage: evaluate_cifs\.py",
    "refine": r"usage: refine\.py",
    "predict": r"usage: predict\.py",
    "explain": r"usage: explain\.py",
    "diffuse": r"usage: diffuse\.py",
    "score": r"usage: score_cifs\.py",
    "prepare": r"usage: prepare_data\.py",
    "download": r"usage: download_data\.py",
}
# Run with the package found only where sys.path says; prints where it and its files are.
LOCATE = """
import crystallm, tokenizer
from crystallm.resources import resource_path
from crystallm.space_groups import space_group
assert space_group(225).symbol == "Fm-3m"
assert tokenizer.CIFTokenizer().vocab_size > 1000
assert tokenizer.CIFTokenizer("crystallm_v1").vocab_size == 371
print(crystallm.__file__)
print(resource_path("resources/demo/demo.parquet"))
print(resource_path("config/tiny_cpu.yaml"))
"""


def run(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    return subprocess.run(arguments, cwd=cwd, env=environ, capture_output=True, text=True, timeout=600)


def output(arguments: list[str], cwd: Path, **environment: str) -> str:
    done = run(arguments, cwd, **environment)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    code = "import sys, crystallm; print([m for m in ('numpy', 'torch', 'pymatgen', 'wandb') if m in sys.modules])"
    assert output([sys.executable, "-c", code], tmp_path).strip() == "[]"


def test_lazy_names() -> None:
    from crystallm.cif import CIFError
    from crystallm.crystal import Crystal
    from crystallm.records import CIFRecord

    assert (crystallm.CIFError, crystallm.Crystal, crystallm.CIFRecord) == (CIFError, Crystal, CIFRecord)
    assert callable(crystallm.generate) and crystallm.Generator.load and crystallm.Predictor.load
    assert crystallm.GenerateConfig(num=2).num == 2
    assert set(crystallm.__all__) <= set(dir(crystallm))
    with pytest.raises(AttributeError, match=r"no attribute 'generate_all'; it has CIFError, CIFRecord"):
        crystallm.generate_all  # noqa: B018


def test_canonicalize_is_the_same_for_another_cell_and_origin() -> None:
    """Rock salt by hand: conventional cell, and the primitive one with the atoms exchanged."""
    head = "data_x\n_cell_length_a {a}\n_cell_length_b {a}\n_cell_length_c {a}\n"
    head += "_cell_angle_alpha {w}\n_cell_angle_beta {w}\n_cell_angle_gamma {w}\n"
    loop = "loop_\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
    faces = [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)]
    sites = [("Na", *f) for f in faces] + [("Cl", (f[0] + 0.5) % 1, *f[1:]) for f in faces]
    conventional = head.format(a=5.64, w=90) + loop + "".join("{} {} {} {}\n".format(*s) for s in sites)
    primitive = head.format(a=5.64 / 2**0.5, w=60) + loop + "Cl 0.1 0.1 0.1\nNa 0.6 0.6 0.6\n"
    text = crystallm.canonicalize(conventional)
    assert crystallm.canonicalize(primitive) == text
    assert text.startswith("data_NaCl\n_crystallm_primitive_formula_units 1\n_symmetry_space_group_name_H-M Fm-3m\n")
    assert "_cell_length_a 5.64\n" in text
    with pytest.raises(crystallm.CIFError, match="cell"):
        crystallm.canonicalize("data_x\n" + loop + "Na 0 0 0\n")


def test_a_text_that_no_canonical_cif_can_hold_is_a_cif_error() -> None:
    text = "data_x\n_cell_length_a 120\n_cell_length_b 130\n_cell_length_c 140\n"
    text += "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
    text += "loop_\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nNa 0 0 0\n"
    with pytest.raises(crystallm.CIFError, match=r"1[234]0"):
        crystallm.canonicalize(text)


def test_each_command_runs_the_script_it_is_named_after(root: Path, tmp_path: Path) -> None:
    """From another folder, as `pip install` leaves it: `crystallm-train --help` is bin/train.py's."""
    names = re.findall(r'"crystallm-(\w+) = crystallm\.cli:(\w+)"', (root / "setup.py").read_text())
    assert names == [(function, function) for function in COMMANDS]
    for function, start in COMMANDS.items():
        code = f"import sys; sys.argv = ['crystallm-{function}', '--help']; import crystallm.cli as c; c.{function}()"
        assert re.match(start, output([sys.executable, "-c", code], tmp_path)), function


@pytest.mark.parametrize("script", sorted(p.name for p in (Path(__file__).parent.parent / "bin").glob("make_*.py")))
def test_scripts_that_make_tables_say_what_they_do_and_what_they_lack(
    root: Path, script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("pyxtal", "pyxtal.symmetry"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(root / "bin" / script), run_name="__main__")
    assert "--out" in capsys.readouterr().out
    if script == "make_space_group_tables.py":
        monkeypatch.setattr(sys, "argv", [script])
        with pytest.raises(SystemExit, match=r"needs pyxtal: pip install 'crystallm\[tables\]'"):
            runpy.run_path(str(root / "bin" / script), run_name="__main__")


def test_version_is_one(root: Path) -> None:
    assert crystallm.__version__ in (root / "CITATION.cff").read_text()
    assert f"## {crystallm.__version__}" in (root / "resources/CHANGELOG.md").read_text()


def test_constraints_pin_every_direct_dependency(root: Path) -> None:
    setup = (root / "setup.py").read_text()
    wanted = {name.lower() for name in re.findall(r'"([A-Za-z][\w-]*)(?:>=[\d.]+)"', setup)}
    lines = (line.split(";")[0].strip() for line in (root / "constraints.txt").read_text().splitlines())
    pinned = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    assert wanted - set(pinned) == set()
    assert "+" not in pinned["torch"], "a local version (+cpu) would forbid the other builds of torch"


def test_ci_runs_the_readme_s_test_command(root: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.S)
    install, test = blocks[0].strip().splitlines(), blocks[1].strip().splitlines()
    assert "python bin/sample.py --prompt" in install[-1]
    assert len(test) == 1
    ci = (root / ".ci/run").read_text()
    assert f"\n{test[0]}\n" in ci
    assert "constraints.txt" in ci and os.access(root / ".ci/run", os.X_OK)


def test_configuration_files_are_readable(root: Path) -> None:
    yaml = pytest.importorskip("yaml")
    for name in (".pre-commit-config.yaml", ".github/workflows/ci.yml", "CITATION.cff"):
        assert yaml.safe_load((root / name).read_text()), name


def test_a_checkout_shadows_what_is_installed(root: Path) -> None:
    """Started in the checkout, Python takes the checkout's code, and the code takes the checkout's files."""
    lines = output([sys.executable, "-c", LOCATE], root, PYTHONPATH=str(root)).split("\n")
    assert lines[0] == str(root / "crystallm/__init__.py")
    assert lines[1:3] == [str(root / "resources/demo/demo.parquet"), str(root / "config/tiny_cpu.yaml")]


def copy_project(root: Path, target: Path) -> None:
    """What an install needs, without what earlier builds left behind."""
    target.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(root / name, target / name)
    for name in ("bin", "config", "crystallm", "resources", "tokenizer"):
        shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without the network."""
    source, target = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("wheel")
    copy_project(root, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(target)]
    output([*pip, str(source)], target)
    [built] = target.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_project(root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    skip = {"__pycache__", ".ipynb_checkpoints", "_files"}
    for folder in ("bin", "config", "resources", "crystallm", "tokenizer"):
        prefix = "" if folder in ("crystallm", "tokenizer") else "crystallm/_files/"
        files = [p for p in (root / folder).rglob("*") if p.is_file() and not skip & set(p.parts)]
        assert {prefix + p.relative_to(root).as_posix() for p in files} <= names
    assert not [name for name in names if name.startswith(("tests/", "bin/", "config/", "resources/"))]


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    output(pip, work)
    lines = output([sys.executable, "-c", LOCATE], work, PYTHONPATH=str(site)).split("\n")
    assert lines[0] == str(site / "crystallm/__init__.py")
    assert lines[1] == str(site / "crystallm/_files/resources/demo/demo.parquet")
    code = "import sys; sys.argv = ['crystallm-prepare', '--help']; from crystallm.cli import prepare; prepare()"
    assert "usage: prepare_data.py" in output([sys.executable, "-c", code], work, PYTHONPATH=str(site))


@pytest.mark.slow
def test_an_editable_install_reads_the_checkout(root: Path, tmp_path: Path) -> None:
    """In an environment of its own; the dependencies are those of the running one."""
    copy, work, environment = tmp_path / "checkout", tmp_path / "work", tmp_path / "venv"
    work.mkdir()
    copy_project(root, copy)
    output([sys.executable, "-m", "venv", "--without-pip", str(environment)], work)
    python = environment / "bin" / "python"
    site = Path(output([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], work).strip())
    import numpy

    (site / "parent.pth").write_text(str(Path(numpy.__file__).parents[1]))  # where the dependencies are
    install = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-e", str(copy)]
    output([str(python), *install], work)
    lines = output([str(python), "-c", LOCATE], work).split("\n")
    assert lines[0] == str(copy / "crystallm/__init__.py")
    assert lines[1] == str(copy / "resources/demo/demo.parquet")
    assert "usage" in output([str(environment / "bin" / "crystallm-prepare"), "--help"], work)

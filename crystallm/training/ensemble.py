"""Trained predictors that become one: their average, its expected errors calibrated anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crystallm.config import from_dict, to_dict
from crystallm.hub import check_export
from crystallm.periodic.weights import export_weights
from crystallm.properties.calibration import calibrated_targets
from crystallm.properties.checkpoint import load_predictor
from crystallm.properties.ensemble import Ensemble, single
from crystallm.properties.prediction import Predictor
from crystallm.properties.tables import PropertyDataConfig, property_samples, sample_splits
from crystallm.train.trainer import differences
from crystallm.training.predictor import some_places

MAY_DIFFER = ("path", "cache", "workers", "max_val")  # of the runs' data: not what is trained on


def combine_predictors(runs: Sequence[str | Path], out: str | Path, path: Sequence[str] | None = None) -> Path:
    """Write the average of predictors of one config as a checkpoint, in 16 bits; its folder.

    Expected errors are calibrated on the validation rows of the first run, whose tables are at `path` if they moved.
    Raises ValueError for fewer than two, for the same twice, and where config or data differ, FileExistsError where
    `out` holds anything but an earlier export.
    """
    if len(runs) < 2:
        raise ValueError(f"an ensemble wants two predictors or more, got {len(runs)}")
    members, infos = [], []
    for run in runs:
        check_export(run, out)
        model, _, info = load_predictor(run)
        members.append(single(model, "an ensemble"))
        infos.append(info)
        if info["model_hash"] in [other["model_hash"] for other in infos[:-1]]:
            raise ValueError(f"{run}: the same predictor twice; train another with another train.seed and out")
        if found := differences(_told(infos[0]), _told(info)):
            key, first, other = found[0]
            raise ValueError(f"{run} is of another kind than {runs[0]}: {key} is {other!r}, there {first!r}")
    ensemble = Ensemble(members).eval()
    info = infos[0] | {"members": [_member(one) for one in infos], "training": _training(infos)}
    data = from_dict(PropertyDataConfig, info["run"]["data"])
    data = data if path is None else replace(data, path=tuple(path))
    samples, _ = property_samples(data, Predictor(ensemble).texts)
    places = (sample_splits(samples, data) == "val").nonzero()[0]
    places = places[samples.n_atoms[places] <= data.loader.max_atoms]
    chosen = some_places(places, data.max_val, info["run"]["train"]["seed"])
    info["targets"] = [to_dict(target) for target in calibrated_targets(ensemble, samples.some(chosen))]
    return export_weights(ensemble, info, out)


def _told(info: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same"""
    data = {key: value for key, value in info["run"]["data"].items() if key not in MAY_DIFFER}
    return {"predictor": info["predictor"], "targets": info["targets"], "data": data, "rows": info["data"]}


def _member(info: dict[str, Any]) -> dict[str, Any]:
    return {"model_hash": info["model_hash"], "seed": info["run"]["train"]["seed"], "training": info["training"]}


def _training(infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all members together"""
    return {name: sum(info["training"][name] for info in infos) for name in ("step", "elapsed_s")}

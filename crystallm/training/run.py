"""Which model a config trains."""

from __future__ import annotations

from collections.abc import Sequence

from crystallm.config import load_config, names_key
from crystallm.training.decoder import RunConfig, train_decoder
from crystallm.training.refiner import RefinerRunConfig, train_refiner


def train(argv: Sequence[str] | None = None) -> str:
    """The run that the arguments describe: with `refiner` among its keys the diffusion model's, with `predictor` the
    property predictor's, else the decoder's."""
    if names_key(argv, "refiner"):
        return train_refiner(load_config(RefinerRunConfig, argv))
    if names_key(argv, "predictor"):
        # It reads tables of crystals, and needs libraries that the two others do without.
        from crystallm.training.predictor import PredictorRunConfig, train_predictor

        return train_predictor(load_config(PredictorRunConfig, argv))
    return train_decoder(load_config(RunConfig, argv))

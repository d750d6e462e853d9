"""Properties of crystals from structure and text: encoders, fusion, prediction with an uncertainty, explanation."""

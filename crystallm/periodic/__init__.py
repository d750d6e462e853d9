"""Networks over atoms of periodic crystals: neighbours, and functions of where they are."""

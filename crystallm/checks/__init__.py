"""A check takes a parsed record and returns None, or the reason it fails. `filter` runs them, `rules` names them."""

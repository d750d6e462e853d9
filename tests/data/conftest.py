import pytest

CUBIC = """data_{name}
_symmetry_space_group_name_H-M '{group}'
_cell_length_a {a}
_cell_length_b {a}
_cell_length_c {a}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
"""


@pytest.fixture(scope="session")
def rock_salt():
    """CIF text of a rock salt, AB in Fm-3m: the four formula units of the conventional cell come from the operators."""

    def text(cation="Na", anion="Cl", a=5.64, name=None):
        head = CUBIC.format(name=name or cation + anion, group="F m -3 m", a=a)
        return f"{head}{cation}1 {cation} 0 0 0\n{anion}1 {anion} 0.5 0.5 0.5\n"

    return text


@pytest.fixture(scope="session")
def caesium_chloride():
    """CIF text of AB in Pm-3m, as P 1, optionally moved off the origin."""

    def text(cation="Cs", anion="Cl", a=4.12, shift=0.0):
        head = CUBIC.format(name=cation + anion, group="P 1", a=a)
        s, t = shift % 1, (0.5 + shift) % 1
        return f"{head}{cation}1 {cation} {s} {s} {s}\n{anion}1 {anion} {t} {t} {t}\n"

    return text

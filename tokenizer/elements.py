"""The elements: their symbols by atomic number, and the order in which a formula writes them.

A formula of the canonical CIF runs from the least to the most electronegative element on Pauling's scale, as pymatgen
writes CaTiO3, NaCl and Fe2O3. Equal electronegativities are broken by the symbol (K before Rb). The elements that
pymatgen gives no electronegativity, He, Ne, Ar and everything from Rf on, stand last, by symbol; Kr (3.00), Xe (2.60)
and Rn (2.20) have one and stand among the others.
"""

# SYMBOLS[Z - 1] is the element of atomic number Z.
# fmt: off
SYMBOLS: tuple[str, ...] = (
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca", "Sc",
    "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y", "Zr",
    "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce", "Pr",
    "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir", "Pt",
    "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm", "Bk",
    "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv",
    "Ts", "Og",
)
# fmt: on

# Ascending Pauling electronegativity; a test compares with pymatgen.
# fmt: off
ELEMENT_ORDER: tuple[str, ...] = (
    "Fr", "Cs", "K", "Rb", "Ba", "Ra", "Na", "Sr", "Li", "Ca", "Ac", "La", "Tb", "Yb", "Ce", "Pm", "Pr", "Nd", "Sm",
    "Eu", "Gd", "Dy", "Y", "Ho", "Er", "Tm", "Lu", "Pu", "Am", "Bk", "Cf", "Cm", "Es", "Fm", "Hf", "Lr", "Md", "No",
    "Th", "Mg", "Zr", "Np", "Sc", "U", "Pa", "Ta", "Ti", "Mn", "Be", "Nb", "Al", "Tl", "V", "Zn", "Cr", "Cd", "In",
    "Ga", "Fe", "Co", "Cu", "Re", "Si", "Tc", "Ni", "Ag", "Sn", "Hg", "Po", "Ge", "Bi", "B", "Sb", "Te", "Mo", "As",
    "P", "At", "H", "Ir", "Os", "Pd", "Rn", "Ru", "Pt", "Rh", "Pb", "W", "Au", "C", "Se", "S", "Xe", "I", "Br", "Kr",
    "N", "Cl", "O", "F", "Ar", "Bh", "Cn", "Db", "Ds", "Fl", "He", "Hs", "Lv", "Mc", "Mt", "Ne", "Nh", "Og", "Rf", "Rg",
    "Sg", "Ts",
)
# fmt: on

ATOMIC_NUMBERS: dict[str, int] = {symbol: number for number, symbol in enumerate(SYMBOLS, start=1)}
ELEMENT_RANK: dict[str, int] = {symbol: rank for rank, symbol in enumerate(ELEMENT_ORDER)}

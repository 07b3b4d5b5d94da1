"""x"""

SMILES: tuple[str, ...] = ("CCO", "CC(=O)O", "c1ccccc1O", "C[C@H](N)C(=O)O")

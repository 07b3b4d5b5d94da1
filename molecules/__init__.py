"""Molecules: conformers from SMILES by diffusion, with exact stereochemistry; and molecules from nothing."""

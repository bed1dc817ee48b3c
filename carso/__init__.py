"""CARSO: purification by a conditional VAE that reads the classifier's internal representation.

Plain PyTorch. E. Ballarin, A. Ansuini, L. Bortolussi, "CARSO", arXiv 2306.06081.
"""

from carso.checkpoint import check_classifier, describe_purifier, load_purifier, save_purifier
from carso.fit import fit_purifier, new_purifier
from carso.model import CARSO, VAE
from carso.purifier import Layout, Purifier
from carso.recipe import read_recipe

__all__ = [
    "CARSO",
    "VAE",
    "Layout",
    "Purifier",
    "check_classifier",
    "describe_purifier",
    "fit_purifier",
    "load_purifier",
    "new_purifier",
    "read_recipe",
    "save_purifier",
]

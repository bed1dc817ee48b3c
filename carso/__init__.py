"""CARSO: purification by a conditional VAE that reads the classifier's own internal representation. Plain PyTorch, without the bench.

E. Ballarin, A. Ansuini, L. Bortolussi, "CARSO", arXiv 2306.06081.
"""

from carso.model import CARSO
from carso.purifier import Layout, Purifier

__all__ = ["CARSO", "Layout", "Purifier"]

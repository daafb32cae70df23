"""The seal of a layer: a Merkle digest of all that is in it, and the list that it was made from.

A layer never changes once it is committed, so its digest, kept elsewhere, tells whether it is still
what it was; the list then names what is not. See docs/backup.md.
"""

from snapfs.seals.checking import Damage, compare, verify
from snapfs.seals.sealing import SEAL, digest_of, measure, seal

__all__ = ["SEAL", "Damage", "compare", "digest_of", "measure", "seal", "verify"]

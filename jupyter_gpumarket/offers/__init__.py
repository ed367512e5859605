"""Offers of all marketplaces: collected, named alike, filtered, ranked."""

from __future__ import annotations

from jupyter_gpumarket.offers.catalogue import Catalogue

__all__ = ["Catalogue"]

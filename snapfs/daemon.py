"""Builds everything that `snapfs serve` runs, in one place, with one exit stack."""

"""Boarding passes: their issue, the 60 characters of their barcode, and its images."""

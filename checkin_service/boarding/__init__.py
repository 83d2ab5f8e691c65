"""Boarding passes: their issue, the text of their barcode, and its images."""

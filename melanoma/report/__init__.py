"""Figures and pages. The names below are the command line's, which is read before the slow imports."""

FORMATS = ("png", "pdf", "svg")  # of figures
DPI = 150

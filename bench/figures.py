"""Prints what a bench measured."""

import statistics


def print_figures(figures):
    """One row per figure, a name and the values of all runs: minimum, median and maximum."""
    print(f"{'':40}{'min':>12}{'median':>12}{'max':>12}")
    for name, values in figures.items():
        row = (min(values), statistics.median(values), max(values))
        print(f"{name:40}" + "".join(f"{value:12,.4g}" for value in row))

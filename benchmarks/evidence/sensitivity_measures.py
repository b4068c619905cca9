"""Measures of `sensitivity.yaml`: those of `code_switching.yaml` on the dev pages."""

from code_switching_measures import fault as fault
from code_switching_measures import measure as measure
from code_switching_measures import measure_all as measure_all

"""A simulated cohort whose truth is known: four patients with two sections each.

Its domains have their own expression and their own H&E-like texture, so that a model has something to learn; patients
differ in stain, depth and programme; the two sections of a patient are joined by a known smooth warp. It stands in
where no real sections are at hand, and it is what the tests measure against. It is no model of disease: everything
made of it is labelled "simulated".
"""

from histolake.ingestion.simulate.cohort import PATIENTS, simulate_cohort, simulate_section

__all__ = ["PATIENTS", "simulate_cohort", "simulate_section"]

"""Forgetting a slide, a patient or a study: whom (`forget.py`), what goes (`removal.py`), and what a model's slides
became since (`whereabouts.py`)."""

from histolake.platform.lake.forgetting.forget import Receipt, find_patient, finish, forget, ingests_of, plan_forget

__all__ = ["Receipt", "find_patient", "finish", "forget", "ingests_of", "plan_forget"]
